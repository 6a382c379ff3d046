//! A small heap for a process with one thread: free lists by power of two, nothing given back.
//!
//! The agent's own needs are bounded (4,096 children, messages of 66,000 bytes), so reuse is enough.
//! Untouched parts of the arena cost no memory.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr;

use super::call;

const SMALLEST: usize = 16;
const PAGE: usize = 4096;
const CLASSES: usize = 32;
const ARENA: usize = 512 * 1024;
const CHUNK: usize = 256 * 1024;

#[repr(C, align(4096))]
struct Arena(UnsafeCell<[u8; ARENA]>);

struct State {
    free: [*mut u8; CLASSES],
    next: usize,
    end: usize,
    arena_used: bool,
}

struct Heap(UnsafeCell<State>);

// SAFETY: the process has one thread and installs no signal handler that allocates.
// JUSTIFICATION: a global allocator must be a static, and a static must be `Sync`.
unsafe impl Sync for Heap {}
// SAFETY: as above.
// JUSTIFICATION: as above.
unsafe impl Sync for Arena {}

static ARENA_BYTES: Arena = Arena(UnsafeCell::new([0; ARENA]));

#[cfg_attr(not(any(test, fuzzing)), global_allocator)]
#[cfg_attr(any(test, fuzzing), allow(dead_code))]
static HEAP: Heap =
    Heap(UnsafeCell::new(State { free: [ptr::null_mut(); CLASSES], next: 0, end: 0, arena_used: false }));

fn class_size(layout: Layout) -> Option<usize> {
    layout.size().max(layout.align()).max(SMALLEST).checked_next_power_of_two()
}

impl State {
    /// Carve `size` bytes, a power of two, aligned to themselves or to a page.
    fn carve(&mut self, size: usize) -> *mut u8 {
        let align = size.min(PAGE);
        loop {
            let start = (self.next + align - 1) & !(align - 1);
            if start != 0 && start.checked_add(size).is_some_and(|end| end <= self.end) {
                self.next = start + size;
                return start as *mut u8;
            }
            if !self.arena_used && size <= ARENA {
                self.arena_used = true;
                self.next = ARENA_BYTES.0.get() as usize;
                self.end = self.next + ARENA;
                continue;
            }
            let length = size.max(CHUNK);
            match call::map_memory(length) {
                Some(start) => {
                    self.next = start;
                    self.end = start + length;
                }
                None => return ptr::null_mut(),
            }
        }
    }
}

// SAFETY: blocks are aligned to their size class (at most a page), never handed out twice while in
// use, and big enough for the layout that asked.
// JUSTIFICATION: without libc the program brings its own allocator.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(size) = class_size(layout) else {
            return ptr::null_mut();
        };
        if layout.align() > PAGE || size.trailing_zeros() as usize >= CLASSES {
            return ptr::null_mut();
        }
        // SAFETY: one thread, and no reference to the state outlives this function.
        // JUSTIFICATION: interior mutability of a static.
        let state = unsafe { &mut *self.0.get() };
        let head = &mut state.free[size.trailing_zeros() as usize];
        if head.is_null() {
            return state.carve(size);
        }
        let block = *head;
        // SAFETY: a free block holds the pointer to the next one in its first word.
        // JUSTIFICATION: a free list threads through the free memory itself.
        *head = unsafe { *(block as *const *mut u8) };
        block
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(size) = class_size(layout) else {
            return ptr::null_mut();
        };
        // SAFETY: as in `alloc`.
        // JUSTIFICATION: as in `alloc`.
        let reused = unsafe {
            let state = &*self.0.get();
            state.free.get(size.trailing_zeros() as usize).is_some_and(|head| !head.is_null())
        };
        // SAFETY: the caller's contract is that of `alloc`; the block holds `layout.size()` bytes.
        // JUSTIFICATION: memory fresh from the kernel is zero, and stays free of cost until touched.
        unsafe {
            let block = self.alloc(layout);
            if reused && !block.is_null() {
                ptr::write_bytes(block, 0, layout.size());
            }
            block
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(size) = class_size(layout) else {
            return;
        };
        // SAFETY: as in `alloc`; the block came from it with the same layout.
        // JUSTIFICATION: as in `alloc`.
        unsafe {
            let state = &mut *self.0.get();
            let head = &mut state.free[size.trailing_zeros() as usize];
            *(block as *mut *mut u8) = *head;
            *head = block;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks in use never overlap, are aligned, and are used again after they were freed.
    #[test]
    fn blocks_do_not_overlap_and_are_reused() {
        let mut random = 7_u64;
        let mut live: std::vec::Vec<(usize, Layout)> = std::vec::Vec::new();
        for _ in 0..20_000 {
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1);
            let pick = (random >> 33) as usize;
            if pick % 3 == 0 && !live.is_empty() {
                let (address, layout) = live.swap_remove(pick % live.len());
                // SAFETY: allocated below with this layout, and removed from the list.
                // JUSTIFICATION: the trait under test is unsafe.
                unsafe { HEAP.dealloc(address as *mut u8, layout) };
                continue;
            }
            let layout = Layout::from_size_align(pick % 3000 + 1, 1 << (pick % 6)).unwrap();
            // SAFETY: the layout's size is not zero.
            // JUSTIFICATION: the trait under test is unsafe.
            let address = unsafe { HEAP.alloc(layout) } as usize;
            assert!(address != 0 && address % layout.align() == 0);
            assert!(live
                .iter()
                .all(|(other, l)| { address + layout.size() <= *other || other + l.size() <= address }));
            if live.len() < 200 {
                live.push((address, layout));
            }
        }
        // SAFETY: as above.
        // JUSTIFICATION: as above.
        unsafe {
            let layout = Layout::from_size_align(5000, 8).unwrap();
            let first = HEAP.alloc(layout);
            HEAP.dealloc(first, layout);
            assert_eq!(first, HEAP.alloc(layout));
        }
    }
}
