//! The services that were started and the ends that the broker has not heard of yet.

use alloc::vec::Vec;

/// Services at once; a call beyond that is answered with 125.
pub const MOST: usize = 4096;

struct Child {
    id: u64,
    /// 0 once it has ended.
    pid: i32,
    code: i32,
}

/// The table of a qube's services.
#[derive(Default)]
pub struct Children(Vec<Child>);

impl Children {
    /// True where no further service may start.
    pub fn full(&self) -> bool {
        self.0.len() >= MOST
    }

    /// Enter a service that has started.
    pub fn started(&mut self, id: u64, pid: i32) {
        self.0.push(Child { id, pid, code: 0 });
    }

    /// Enter a call that could not be served. Beyond a bound it is forgotten: the broker sent it
    /// although it was never admitted to send so many.
    pub fn failed(&mut self, id: u64, code: i32) {
        if self.0.len() < 2 * MOST {
            self.0.push(Child { id, pid: 0, code });
        }
    }

    /// Note that a process was reaped; most that PID 1 reaps are none of ours.
    pub fn ended(&mut self, pid: i32, code: i32) {
        if let Some(child) = self.0.iter_mut().find(|child| child.pid == pid) {
            child.pid = 0;
            child.code = code;
        }
    }

    /// The processes still running.
    pub fn running(&self) -> impl Iterator<Item = i32> + '_ {
        self.0.iter().map(|child| child.pid).filter(|&pid| pid != 0)
    }

    /// Hand each end to `send` until one is not taken; true when none is left.
    pub fn deliver(&mut self, mut send: impl FnMut(u64, i32) -> bool) -> bool {
        let mut at = 0;
        while at < self.0.len() {
            let child = &self.0[at];
            if child.pid != 0 {
                at += 1;
            } else if send(child.id, child.code) {
                self.0.swap_remove(at);
            } else {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An end that was not taken is offered again; one that was taken is not.
    #[test]
    fn ends_are_delivered_once() {
        let mut children = Children::default();
        children.started(1, 100);
        children.started(2, 200);
        children.failed(3, 125);
        children.ended(200, 7);
        children.ended(999, 1);
        assert!(!children.deliver(|_, _| false));
        let mut sent = Vec::new();
        assert!(children.deliver(|id, code| {
            sent.push((id, code));
            true
        }));
        sent.sort_unstable();
        assert_eq!(sent, [(2, 7), (3, 125)]);
        assert_eq!(children.running().collect::<Vec<_>>(), [100]);
        assert!(children.deliver(|_, _| panic!("sent twice")));
    }

    /// The table has a bound.
    #[test]
    fn the_table_is_bounded() {
        let mut children = Children::default();
        for id in 0..3 * MOST as u64 {
            if !children.full() {
                children.started(id, id as i32 + 1);
            } else {
                children.failed(id, 125);
            }
        }
        assert_eq!(children.running().count(), MOST);
        assert_eq!(children.0.len(), 2 * MOST);
    }
}
