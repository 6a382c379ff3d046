//! Wait for a fact to change.

use alloc::vec::Vec;

use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;

use super::store::{self, Places};

/// Wait until one of `paths`, or something below it, is another than now; which.
pub fn until_changed(places: &Places<'_>, paths: &[&[u8]]) -> Result<Vec<u8>, Errno> {
    // Watch first, look second: no change in between is missed.
    let watch = inotify::init(CreateFlags::CLOEXEC)?;
    look_after(&watch, places)?;
    let before = store::load(places)?;
    loop {
        let mut events = [0_u8; 4096];
        match rustix::io::read(&watch, &mut events) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        look_after(&watch, places)?;
        let now = store::load(places)?;
        let mut changed = before.changed(&now);
        if let Some(path) = changed.find(|path| paths.iter().any(|wanted| covers(wanted, path))) {
            return Ok(path.to_vec());
        }
    }
}

/// Watch both directories; for the qube's own one to come to be, what it will lie in.
fn look_after(watch: &OwnedFd, places: &Places<'_>) -> Result<(), Errno> {
    inotify::add_watch(watch, places.told, WatchFlags::MOVED_TO)?;
    if inotify::add_watch(watch, places.own, WatchFlags::MOVED_TO) == Err(Errno::NOENT) {
        let at = places.own.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
        inotify::add_watch(watch, &places.own[..at.max(1)], WatchFlags::CREATE)?;
        // It may have come to be in between.
        match inotify::add_watch(watch, places.own, WatchFlags::MOVED_TO) {
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Whether a change of `path` is one of `wanted`.
fn covers(wanted: &[u8], path: &[u8]) -> bool {
    path.strip_prefix(wanted)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/") || wanted.ends_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The path itself and what is below it, not what merely begins alike.
    #[test]
    fn below() {
        assert!(covers(b"/a", b"/a"));
        assert!(covers(b"/a", b"/a/b"));
        assert!(covers(b"/a/", b"/a/b"));
        assert!(covers(b"/", b"/a"));
        assert!(!covers(b"/a", b"/ab"));
        assert!(!covers(b"/a/", b"/a"));
    }
}
