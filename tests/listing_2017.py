"""The listings of properties of 2017: name, flag (`-` set, `D` default, `U` no value) and value.

Column 17 of the sheet `admin-api`, section 5, for a fresh AppVM, the admin qube and the system.
"""

WORK_2017 = """
autostart           D False
backup_timestamp    U
debug               D False
default_dispvm      D None
default_user        D user
gateway             D
include_in_backups  D True
installed_by_rpm    D False
ip                  D 10.137.0.5
kernel              D
kernelopts          D
label               - red
mac                 D 00:16:3e:5e:6c:00
maxmem              D 4000
memory              D 400
name                - work
netvm               D sys-firewall
provides_network    D False
qid                 - 5
qrexec_timeout      D 60
stubdom_mem         U
stubdom_xid         D -1
template            - debian
template_for_dispvms D False
updateable          D False
uuid                - UUID
vcpus               D 2
virt_mode           D container
visible_gateway     D 10.137.0.3
visible_ip          D 10.137.0.5
visible_netmask     D 255.255.255.255
xid                 D -1
"""
DOM0_2017 = """
default_dispvm D None
label          D black
name           D dom0
qid            D 0
uuid           D 00000000-0000-0000-0000-000000000000
"""
GLOBAL_2017 = """
check_updates_vm       D True
clockvm                D None
default_dispvm         D None
default_kernel         D
default_netvm          - sys-firewall
default_pool           D varlibqubes
default_pool_kernel    D linux-kernel
default_pool_private   D varlibqubes
default_pool_root      D varlibqubes
default_pool_volatile  D varlibqubes
default_qrexec_timeout D 60
default_template       - debian
stats_interval         D 3
updatevm               D None
"""
