# Bash completion of the commands of Caisson.
# Written by script/completion from the commands' parsers; do not edit.

declare -gA _caisson_options _caisson_values _caisson_words _caisson_commands _caisson_properties
_caisson_values['caisson --root']='@directories'
_caisson_commands['caisson']='up down doctor template policy prompt import-qubes-xml export-qubes-xml version'
_caisson_values['caisson up --root']='@directories'
_caisson_options['caisson up']='--detach --help --quiet --root --verbose --version -h -q -v'
_caisson_values['caisson down --root']='@directories'
_caisson_options['caisson down']='--help --quiet --root --verbose --version -h -q -v'
_caisson_values['caisson doctor --root']='@directories'
_caisson_options['caisson doctor']='--help --json --quiet --root --verbose --version -h -q -v'
_caisson_values['caisson template --root']='@directories'
_caisson_commands['caisson template']='build list'
_caisson_values['caisson template build --root']='@directories'
_caisson_options['caisson template build']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['caisson template build']='@recipes'
_caisson_values['caisson template list --root']='@directories'
_caisson_options['caisson template list']='--help --quiet --root --verbose --version -h -q -v'
_caisson_options['caisson template']='--help --quiet --root --verbose --version -h -q -v'
_caisson_values['caisson policy --root']='@directories'
_caisson_commands['caisson policy']='decide reach'
_caisson_values['caisson policy decide --root']='@directories'
_caisson_values['caisson policy decide --policy-dir']='@directories'
_caisson_values['caisson policy decide --system-info']='@files'
_caisson_options['caisson policy decide']='--help --policy-dir --quiet --root --system-info --verbose --version -h -q -v'
_caisson_values['caisson policy reach --root']='@directories'
_caisson_values['caisson policy reach --to']=''
_caisson_values['caisson policy reach --assert']=''
_caisson_values['caisson policy reach --assert-file']='@files'
_caisson_values['caisson policy reach --assume']=''
_caisson_values['caisson policy reach --one-way']='@services'
_caisson_values['caisson policy reach --services']='@services'
_caisson_values['caisson policy reach --policy-dir']='@directories'
_caisson_values['caisson policy reach --system-info']='@files'
_caisson_options['caisson policy reach']='--assert --assert-file --assume --disposables --from --help --json --no-ask --one-way --policy-dir --quiet --root --services --system-info --to --verbose --version -h -q -v'
_caisson_options['caisson policy']='--help --quiet --root --verbose --version -h -q -v'
_caisson_values['caisson prompt --root']='@directories'
_caisson_options['caisson prompt']='--help --quiet --root --verbose --version -h -q -v'
_caisson_values['caisson import-qubes-xml --root']='@directories'
_caisson_options['caisson import-qubes-xml']='--dry-run --help --json --quiet --root --strict --verbose --version -h -q -v'
_caisson_words['caisson import-qubes-xml']='@files'
_caisson_values['caisson export-qubes-xml --root']='@directories'
_caisson_options['caisson export-qubes-xml']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['caisson export-qubes-xml']='@files'
_caisson_values['caisson version --root']='@directories'
_caisson_options['caisson version']='--help --quiet --root --verbose --version -h -q -v'
_caisson_options['caisson']='--help --quiet --root --verbose --version -h -q -v'
_caisson_values['qubes-prefs --root']='@directories'
_caisson_options['qubes-prefs']='--default --help --help-properties --hide-default --quiet --root --unset --verbose --version -D -h -q -v'
_caisson_words['qubes-prefs']='@properties|@value'
_caisson_values['qubesd-query --root']='@directories'
_caisson_values['qubesd-query --connect']=''
_caisson_values['qubesd-query -c']=''
_caisson_values['qubesd-query --max-bytes']=''
_caisson_options['qubesd-query']='--connect --empty --fail --help --max-bytes --null --quiet --root --single-line --verbose --version -c -e -h -q -v'
_caisson_words['qubesd-query']='@qubes||@qubes|'
_caisson_values['qvm-check --root']='@directories'
_caisson_values['qvm-check --exclude']='@qubes'
_caisson_options['qvm-check']='--all --exclude --help --networked --paused --quiet --root --running --template --verbose --version -h -q -v'
_caisson_words['qvm-check']='@qubes...'
_caisson_values['qvm-clone --root']='@directories'
_caisson_values['qvm-clone --class']='AppVM TemplateVM StandaloneVM DispVM RemoteVM'
_caisson_values['qvm-clone -C']='AppVM TemplateVM StandaloneVM DispVM RemoteVM'
_caisson_values['qvm-clone -P']='@pools'
_caisson_values['qvm-clone --pool']=''
_caisson_values['qvm-clone -p']=''
_caisson_options['qvm-clone']='--class --help --ignore-errors --pool --quiet --root --verbose --version -C -P -h -p -q -v'
_caisson_words['qvm-clone']='@qubes|'
_caisson_values['qvm-create --root']='@directories'
_caisson_values['qvm-create --class']='AppVM TemplateVM StandaloneVM DispVM RemoteVM'
_caisson_values['qvm-create -C']='AppVM TemplateVM StandaloneVM DispVM RemoteVM'
_caisson_values['qvm-create --template']='@qubes'
_caisson_values['qvm-create -t']='@qubes'
_caisson_values['qvm-create --label']='red orange yellow green gray blue purple black'
_caisson_values['qvm-create -l']='red orange yellow green gray blue purple black'
_caisson_values['qvm-create --property']=''
_caisson_values['qvm-create --prop']=''
_caisson_values['qvm-create --pool']=''
_caisson_values['qvm-create -p']=''
_caisson_values['qvm-create -P']='@pools'
_caisson_values['qvm-create --root-copy-from']='@files'
_caisson_values['qvm-create -r']='@files'
_caisson_values['qvm-create --root-move-from']='@files'
_caisson_values['qvm-create -R']='@files'
_caisson_options['qvm-create']='--class --disp --help --help-classes --label --pool --prop --property --quiet --root --root-copy-from --root-move-from --standalone --template --verbose --version -C -P -R -h -l -p -q -r -t -v'
_caisson_values['qvm-features --root']='@directories'
_caisson_options['qvm-features']='--default --delete --help --quiet --root --unset --verbose --version -D -h -q -v'
_caisson_words['qvm-features']='@qubes|@features|'
_caisson_values['qvm-kill --root']='@directories'
_caisson_values['qvm-kill --exclude']='@qubes'
_caisson_options['qvm-kill']='--all --exclude --help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-kill']='@qubes...'
_caisson_values['qvm-ls --root']='@directories'
_caisson_values['qvm-ls --exclude']='@qubes'
_caisson_values['qvm-ls --format']='disk full kernel network prefs simple'
_caisson_values['qvm-ls -o']='disk full kernel network prefs simple'
_caisson_values['qvm-ls --fields']=''
_caisson_values['qvm-ls -O']=''
_caisson_values['qvm-ls --class']='AppVM TemplateVM StandaloneVM DispVM RemoteVM AdminVM'
_caisson_values['qvm-ls --label']='red orange yellow green gray blue purple black'
_caisson_values['qvm-ls --tags']='@tags'
_caisson_values['qvm-ls --exclude-tags']='@tags'
_caisson_values['qvm-ls --template-source']='@qubes'
_caisson_values['qvm-ls --netvm-is']='@qubes'
_caisson_values['qvm-ls --internal']='y n'
_caisson_values['qvm-ls --servicevm']='y n'
_caisson_values['qvm-ls --features']=''
_caisson_values['qvm-ls --prefs']=''
_caisson_values['qvm-ls --sort']=''
_caisson_options['qvm-ls']='--all --class --exclude --exclude-tags --features --fields --format --halted --help --ignore-case --internal --json --label --netvm-is --paused --pending-update --prefs --quiet --raw-data --raw-list --reverse --root --running --servicevm --sort --tags --template-source --tree --verbose --version -O -d -h -k -n -o -q -v'
_caisson_words['qvm-ls']='@qubes...'
_caisson_values['qvm-notes --root']='@directories'
_caisson_values['qvm-notes --import']='@files'
_caisson_values['qvm-notes -i']='@files'
_caisson_values['qvm-notes --set']=''
_caisson_values['qvm-notes -s']=''
_caisson_values['qvm-notes --append']=''
_caisson_options['qvm-notes']='--append --delete --edit --force --help --import --print --quiet --root --set --verbose --version -d -e -f -h -i -p -q -s -v'
_caisson_words['qvm-notes']='@qubes'
_caisson_values['qvm-pause --root']='@directories'
_caisson_values['qvm-pause --exclude']='@qubes'
_caisson_options['qvm-pause']='--all --exclude --help --quiet --root --suspend --verbose --version -S -h -q -v'
_caisson_words['qvm-pause']='@qubes...'
_caisson_values['qvm-pool --root']='@directories'
_caisson_commands['qvm-pool']='list ls l drivers d info i add a remove rm r set s'
_caisson_values['qvm-pool list --root']='@directories'
_caisson_options['qvm-pool list']='--help --quiet --root --verbose --version -h -q -v'
_caisson_values['qvm-pool ls --root']='@directories'
_caisson_options['qvm-pool ls']='--help --quiet --root --verbose --version -h -q -v'
_caisson_values['qvm-pool l --root']='@directories'
_caisson_options['qvm-pool l']='--help --quiet --root --verbose --version -h -q -v'
_caisson_values['qvm-pool drivers --root']='@directories'
_caisson_options['qvm-pool drivers']='--help --quiet --root --verbose --version -h -q -v'
_caisson_values['qvm-pool d --root']='@directories'
_caisson_options['qvm-pool d']='--help --quiet --root --verbose --version -h -q -v'
_caisson_values['qvm-pool info --root']='@directories'
_caisson_options['qvm-pool info']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-pool info']='@pools'
_caisson_values['qvm-pool i --root']='@directories'
_caisson_options['qvm-pool i']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-pool i']='@pools'
_caisson_values['qvm-pool add --root']='@directories'
_caisson_values['qvm-pool add --option']=''
_caisson_values['qvm-pool add -o']=''
_caisson_options['qvm-pool add']='--help --option --quiet --root --verbose --version -h -o -q -v'
_caisson_words['qvm-pool add']='|@drivers'
_caisson_values['qvm-pool a --root']='@directories'
_caisson_values['qvm-pool a --option']=''
_caisson_values['qvm-pool a -o']=''
_caisson_options['qvm-pool a']='--help --option --quiet --root --verbose --version -h -o -q -v'
_caisson_words['qvm-pool a']='|@drivers'
_caisson_values['qvm-pool remove --root']='@directories'
_caisson_options['qvm-pool remove']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-pool remove']='@pools...'
_caisson_values['qvm-pool rm --root']='@directories'
_caisson_options['qvm-pool rm']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-pool rm']='@pools...'
_caisson_values['qvm-pool r --root']='@directories'
_caisson_options['qvm-pool r']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-pool r']='@pools...'
_caisson_values['qvm-pool set --root']='@directories'
_caisson_values['qvm-pool set --option']=''
_caisson_values['qvm-pool set -o']=''
_caisson_options['qvm-pool set']='--help --option --quiet --root --verbose --version -h -o -q -v'
_caisson_words['qvm-pool set']='@pools'
_caisson_values['qvm-pool s --root']='@directories'
_caisson_values['qvm-pool s --option']=''
_caisson_values['qvm-pool s -o']=''
_caisson_options['qvm-pool s']='--help --option --quiet --root --verbose --version -h -o -q -v'
_caisson_words['qvm-pool s']='@pools'
_caisson_values['qvm-pool -i']='@pools'
_caisson_values['qvm-pool --info']='@pools'
_caisson_values['qvm-pool -a']=''
_caisson_values['qvm-pool --add']=''
_caisson_values['qvm-pool -r']='@pools'
_caisson_values['qvm-pool --remove']='@pools'
_caisson_values['qvm-pool -s']='@pools'
_caisson_values['qvm-pool --set']='@pools'
_caisson_options['qvm-pool']='--add --help --help-drivers --info --list --quiet --remove --root --set --verbose --version -a -h -i -l -q -r -s -v'
_caisson_values['qvm-prefs --root']='@directories'
_caisson_options['qvm-prefs']='--default --help --help-properties --hide-default --quiet --root --unset --verbose --version -D -h -q -v'
_caisson_words['qvm-prefs']='@qubes|@properties|@value'
_caisson_values['qvm-remove --root']='@directories'
_caisson_values['qvm-remove --exclude']='@qubes'
_caisson_options['qvm-remove']='--all --exclude --force --help --quiet --root --verbose --version -f -h -q -v'
_caisson_words['qvm-remove']='@qubes...'
_caisson_values['qvm-run --root']='@directories'
_caisson_values['qvm-run --user']=''
_caisson_values['qvm-run -u']=''
_caisson_values['qvm-run --localcmd']=''
_caisson_values['qvm-run --exclude']='@qubes'
_caisson_values['qvm-run --color-output']=''
_caisson_values['qvm-run --color-stderr']=''
_caisson_options['qvm-run']='--all --autostart --color-output --color-stderr --dispvm --exclude --filter-escape-chars --help --localcmd --no-autostart --no-color-output --no-color-stderr --no-filter-escape-chars --no-shell --pass-io --quiet --root --service --user --verbose --version -a -h -n -p -q -u -v'
_caisson_words['qvm-run']='@qubes'
_caisson_values['qvm-service --root']='@directories'
_caisson_options['qvm-service']='--default --delete --disable --enable --help --list --quiet --root --unset --verbose --version -D -d -e -h -l -q -v'
_caisson_words['qvm-service']='@qubes|@services|'
_caisson_values['qvm-shutdown --root']='@directories'
_caisson_values['qvm-shutdown --exclude']='@qubes'
_caisson_values['qvm-shutdown --timeout']=''
_caisson_options['qvm-shutdown']='--all --dry-run --exclude --force --help --quiet --root --timeout --verbose --version --wait -h -q -v'
_caisson_words['qvm-shutdown']='@qubes...'
_caisson_values['qvm-start --root']='@directories'
_caisson_values['qvm-start --exclude']='@qubes'
_caisson_values['qvm-start --cdrom']=''
_caisson_values['qvm-start --hddisk']=''
_caisson_values['qvm-start --drive']=''
_caisson_options['qvm-start']='--all --cdrom --drive --exclude --hddisk --help --install-windows-tools --quiet --root --skip-if-running --verbose --version -h -q -v'
_caisson_words['qvm-start']='@qubes...'
_caisson_values['qvm-tags --root']='@directories'
_caisson_commands['qvm-tags']='list ls l add a set del d unset u'
_caisson_values['qvm-tags list --root']='@directories'
_caisson_options['qvm-tags list']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-tags list']='@tags'
_caisson_values['qvm-tags ls --root']='@directories'
_caisson_options['qvm-tags ls']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-tags ls']='@tags'
_caisson_values['qvm-tags l --root']='@directories'
_caisson_options['qvm-tags l']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-tags l']='@tags'
_caisson_values['qvm-tags add --root']='@directories'
_caisson_options['qvm-tags add']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-tags add']='@tags...'
_caisson_values['qvm-tags a --root']='@directories'
_caisson_options['qvm-tags a']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-tags a']='@tags...'
_caisson_values['qvm-tags set --root']='@directories'
_caisson_options['qvm-tags set']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-tags set']='@tags...'
_caisson_values['qvm-tags del --root']='@directories'
_caisson_options['qvm-tags del']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-tags del']='@tags...'
_caisson_values['qvm-tags d --root']='@directories'
_caisson_options['qvm-tags d']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-tags d']='@tags...'
_caisson_values['qvm-tags unset --root']='@directories'
_caisson_options['qvm-tags unset']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-tags unset']='@tags...'
_caisson_values['qvm-tags u --root']='@directories'
_caisson_options['qvm-tags u']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-tags u']='@tags...'
_caisson_options['qvm-tags']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-tags']='@qubes'
_caisson_values['qvm-unpause --root']='@directories'
_caisson_values['qvm-unpause --exclude']='@qubes'
_caisson_options['qvm-unpause']='--all --exclude --help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-unpause']='@qubes...'
_caisson_values['qvm-volume --root']='@directories'
_caisson_commands['qvm-volume']='list ls l info i config c set s resize extend revert rv r import clone clear'
_caisson_values['qvm-volume list --root']='@directories'
_caisson_values['qvm-volume list --exclude']='@qubes'
_caisson_values['qvm-volume list --pool']='@pools'
_caisson_values['qvm-volume list -p']='@pools'
_caisson_options['qvm-volume list']='--all --exclude --help --pool --quiet --root --verbose --version -h -p -q -v'
_caisson_words['qvm-volume list']='@qubes...'
_caisson_values['qvm-volume ls --root']='@directories'
_caisson_values['qvm-volume ls --exclude']='@qubes'
_caisson_values['qvm-volume ls --pool']='@pools'
_caisson_values['qvm-volume ls -p']='@pools'
_caisson_options['qvm-volume ls']='--all --exclude --help --pool --quiet --root --verbose --version -h -p -q -v'
_caisson_words['qvm-volume ls']='@qubes...'
_caisson_values['qvm-volume l --root']='@directories'
_caisson_values['qvm-volume l --exclude']='@qubes'
_caisson_values['qvm-volume l --pool']='@pools'
_caisson_values['qvm-volume l -p']='@pools'
_caisson_options['qvm-volume l']='--all --exclude --help --pool --quiet --root --verbose --version -h -p -q -v'
_caisson_words['qvm-volume l']='@qubes...'
_caisson_values['qvm-volume info --root']='@directories'
_caisson_options['qvm-volume info']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-volume info']='@volumes|pool vid rw source save_on_stop snap_on_start size usage revisions_to_keep ephemeral is_outdated revisions'
_caisson_values['qvm-volume i --root']='@directories'
_caisson_options['qvm-volume i']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-volume i']='@volumes|pool vid rw source save_on_stop snap_on_start size usage revisions_to_keep ephemeral is_outdated revisions'
_caisson_values['qvm-volume config --root']='@directories'
_caisson_options['qvm-volume config']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-volume config']='@volumes|rw revisions_to_keep ephemeral|'
_caisson_values['qvm-volume c --root']='@directories'
_caisson_options['qvm-volume c']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-volume c']='@volumes|rw revisions_to_keep ephemeral|'
_caisson_values['qvm-volume set --root']='@directories'
_caisson_options['qvm-volume set']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-volume set']='@volumes|rw revisions_to_keep ephemeral|'
_caisson_values['qvm-volume s --root']='@directories'
_caisson_options['qvm-volume s']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-volume s']='@volumes|rw revisions_to_keep ephemeral|'
_caisson_values['qvm-volume resize --root']='@directories'
_caisson_options['qvm-volume resize']='--force --help --quiet --root --verbose --version -f -h -q -v'
_caisson_words['qvm-volume resize']='@volumes|'
_caisson_values['qvm-volume extend --root']='@directories'
_caisson_options['qvm-volume extend']='--force --help --quiet --root --verbose --version -f -h -q -v'
_caisson_words['qvm-volume extend']='@volumes|'
_caisson_values['qvm-volume revert --root']='@directories'
_caisson_options['qvm-volume revert']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-volume revert']='@volumes|'
_caisson_values['qvm-volume rv --root']='@directories'
_caisson_options['qvm-volume rv']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-volume rv']='@volumes|'
_caisson_values['qvm-volume r --root']='@directories'
_caisson_options['qvm-volume r']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-volume r']='@volumes|'
_caisson_values['qvm-volume import --root']='@directories'
_caisson_values['qvm-volume import --size']=''
_caisson_options['qvm-volume import']='--help --no-resize --quiet --root --size --verbose --version -h -q -v'
_caisson_words['qvm-volume import']='@volumes|@files'
_caisson_values['qvm-volume clone --root']='@directories'
_caisson_options['qvm-volume clone']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-volume clone']='@volumes|@volumes'
_caisson_values['qvm-volume clear --root']='@directories'
_caisson_options['qvm-volume clear']='--help --quiet --root --verbose --version -h -q -v'
_caisson_words['qvm-volume clear']='@volumes'
_caisson_options['qvm-volume']='--help --quiet --root --verbose --version -h -q -v'
_caisson_properties['audiovm']='@qubes none'
_caisson_properties['auto_cleanup']='True False'
_caisson_properties['autostart']='True False'
_caisson_properties['check_updates_vm']='True False'
_caisson_properties['clockvm']='@qubes none'
_caisson_properties['debug']='True False'
_caisson_properties['default_audiovm']='@qubes none'
_caisson_properties['default_dispvm']='@qubes none'
_caisson_properties['default_guivm']='@qubes none'
_caisson_properties['default_netvm']='@qubes none'
_caisson_properties['default_template']='@qubes none'
_caisson_properties['guivm']='@qubes none'
_caisson_properties['include_in_backups']='True False'
_caisson_properties['installed_by_rpm']='True False'
_caisson_properties['is_preload']='True False'
_caisson_properties['label']='red orange yellow green gray blue purple black'
_caisson_properties['management_dispvm']='@qubes none'
_caisson_properties['netvm']='@qubes none'
_caisson_properties['provides_network']='True False'
_caisson_properties['relayvm']='@qubes none'
_caisson_properties['template']='@qubes none'
_caisson_properties['template_for_dispvms']='True False'
_caisson_properties['updateable']='True False'
_caisson_properties['updatevm']='@qubes none'

# Words that only the running system knows; the first argument is the kind, the second the qube.
_caisson_known() {
  case $1 in
    @qubes) qvm-ls --raw-list ;;
    @properties)
      if [[ $3 == qubes-prefs ]]; then qubes-prefs; else qvm-prefs "$2"; fi | cut -d ' ' -f 1 ;;
    @features) qvm-features "$2" | cut -d ' ' -f 1 ;;
    @tags) qvm-tags "$2" ;;
    @services) qvm-service "$2" | cut -d ' ' -f 1 ;;
    @pools) qvm-pool list | tail -n +2 | cut -d ' ' -f 1 ;;
    @drivers) qvm-pool drivers | tail -n +2 | cut -d ' ' -f 1 ;;
    @recipes) caisson template list ;;
    '@qubes none') qvm-ls --raw-list; echo none ;;
    @value) _caisson_known "${_caisson_properties[${4//-/_}]-}" "$2" "$3" ;;
    *) printf '%s\n' $1 ;;
  esac 2>/dev/null
}

_caisson_offer() {
  case $1 in
    '') ;;
    @files) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$current") ;;
    @directories) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$current") ;;
    # The shell takes a colon for the end of a word: before it is the qube, behind it the volume.
    @volumes)
      if [[ -n $colon ]]; then
        _caisson_match 'root private volatile kernel'
      else
        compopt -o nospace
        _caisson_match "$(_caisson_known @qubes | sed 's/$/:/')"
      fi ;;
    *) _caisson_match "$(_caisson_known "$1" "$qube" "$path" "$previous")" ;;
  esac
}

# Offer those of the words that begin with what is typed.
_caisson_match() {
  mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -W "$1" -- "$current")
}

_caisson() {
  local current=${COMP_WORDS[COMP_CWORD]} path qube='' option='' previous='' colon=''
  local word at=0 index kinds
  path=$(basename -- "${COMP_WORDS[0]}")
  COMPREPLY=()
  [[ $current == = ]] && current=''
  for ((index = 1; index < COMP_CWORD; index++)); do
    word=${COMP_WORDS[index]}
    if [[ $word == = ]]; then
      continue
    elif [[ $word == : ]]; then
      colon=yes
    elif [[ -n $colon ]]; then
      colon=''
    elif [[ -n $option ]]; then
      option=''
    elif [[ $word == -* ]]; then
      [[ -v _caisson_values["$path $word"] ]] && option=$word
    elif [[ " ${_caisson_commands[$path]-} " == *" $word "* ]]; then
      path+=" $word" at=0
    else
      [[ -z $qube ]] && qube=$word
      previous=$word
      ((++at))
    fi
  done
  [[ $current == : ]] && colon=yes current=''
  # What was before the colon is not a word of its own.
  [[ -n $colon ]] && ((at--))
  if [[ -n $option ]]; then
    _caisson_offer "${_caisson_values["$path $option"]}"
  elif [[ $current == -* ]]; then
    _caisson_match "${_caisson_options[$path]-}"
  else
    IFS='|' read -r -a kinds <<<"${_caisson_words[$path]-}"
    # The last kind, marked by three dots, goes on for ever.
    if ((${#kinds[@]} && at >= ${#kinds[@]})) && [[ ${kinds[-1]} == *... ]]; then
      at=$((${#kinds[@]} - 1))
    fi
    word=${kinds[at]-}
    _caisson_offer "${word%...}"
    [[ -n ${_caisson_commands[$path]-} ]] && _caisson_match "${_caisson_commands[$path]}"
  fi
}

complete -F _caisson caisson qubes-prefs qubesd-query qvm-check qvm-clone qvm-create qvm-features qvm-kill qvm-ls qvm-notes qvm-pause qvm-pool qvm-prefs qvm-remove qvm-run qvm-service qvm-shutdown qvm-start qvm-tags qvm-unpause qvm-volume
