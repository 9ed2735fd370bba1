//! Threads, the order of their work, and the memory that they share.
//!
//! Work is done in the order in which dpkg will ask for packages. Writing comes first, because it frees memory; a
//! block is decoded only when there is room for what comes out of it. The first block in order is always let in, so
//! that the work cannot come to a standstill.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What orders the work: the package, then the block within it.
pub(super) type Place = (usize, usize);

/// Work that is waiting.
#[derive(Debug)]
pub(super) struct Queue<T, W> {
    state: Mutex<State<T, W>>,
    wake: Condvar,
    limit: u64,
}

#[derive(Debug)]
struct State<T, W> {
    tasks: BTreeMap<Place, (T, u64)>,
    writes: VecDeque<W>,
    in_use: u64,
    stop: bool,
    /// Buffers that are kept for the next block: fresh memory from the kernel costs a fault for every page.
    spare: Vec<Vec<u8>>,
    most_in_use: u64,
}

/// What a thread does next.
#[derive(Debug)]
pub(super) enum Next<T, W> {
    Task(T, Place, Reserved),
    Write(W),
}

/// Memory that was promised to a task.
#[derive(Debug)]
pub(super) struct Reserved(u64);

impl<T, W> Queue<T, W> {
    /// `limit`: bytes of buffers at any one time.
    pub(super) fn new(limit: u64) -> Self {
        let state = State {
            tasks: BTreeMap::new(),
            writes: VecDeque::new(),
            in_use: 0,
            stop: false,
            spare: Vec::new(),
            most_in_use: 0,
        };
        Self { state: Mutex::new(state), wake: Condvar::new(), limit }
    }

    fn lock(&self) -> MutexGuard<'_, State<T, W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a task that will need `memory` bytes for what comes out of it.
    pub(super) fn push(&self, place: Place, task: T, memory: u64) {
        self.lock().tasks.insert(place, (task, memory));
        self.wake.notify_one();
    }

    /// Adds something to write.
    pub(super) fn push_write(&self, write: W) {
        self.lock().writes.push_back(write);
        self.wake.notify_one();
    }

    /// A write that waits.
    pub(super) fn a_write(&self) -> Option<W> {
        self.lock().writes.pop_front()
    }

    /// Waits for something to do; `None` when everything is to stop.
    pub(super) fn next(&self) -> Option<Next<T, W>> {
        let mut state = self.lock();
        loop {
            if state.stop {
                return None;
            }
            if let Some(write) = state.writes.pop_front() {
                return Some(Next::Write(write));
            }
            if let Some((place, (_, memory))) = state.tasks.first_key_value() {
                let (place, memory) = (*place, *memory);
                if state.in_use == 0 || state.in_use + memory <= self.limit {
                    let Some((task, _)) = state.tasks.remove(&place) else { continue };
                    state.in_use += memory;
                    state.most_in_use = state.most_in_use.max(state.in_use);
                    return Some(Next::Task(task, place, Reserved(memory)));
                }
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends all threads after what they are doing now.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.stop = true;
        // Dropped without the lock: what they hold gives its memory back to this very queue.
        let (tasks, writes) = (std::mem::take(&mut state.tasks), std::mem::take(&mut state.writes));
        drop(state);
        drop((tasks, writes));
        self.wake.notify_all();
    }

    /// Whether everything is to stop.
    pub(super) fn stopped(&self) -> bool {
        self.lock().stop
    }

    /// The most memory that was promised at any one time, bytes.
    pub(super) fn most_in_use(&self) -> u64 {
        self.lock().most_in_use
    }

    /// Gives promised memory back.
    #[expect(clippy::needless_pass_by_value, reason = "what was promised is given back once")]
    pub(super) fn release(&self, reserved: Reserved) {
        let mut state = self.lock();
        state.in_use = state.in_use.saturating_sub(reserved.0);
        drop(state);
        self.wake.notify_all();
    }

    /// A buffer of at least `size` bytes, with anything in it. A spare one keeps its length: to make it longer again
    /// would fill it with zeros.
    pub(super) fn buffer(&self, size: usize) -> Vec<u8> {
        let spare = &mut self.lock().spare;
        let fits = spare.iter().enumerate().filter(|(_, b)| b.len() >= size).min_by_key(|(_, b)| b.len());
        match fits {
            Some((number, _)) => spare.swap_remove(number),
            None => vec![0; size],
        }
    }

    /// Takes a buffer back, for the next block.
    pub(super) fn keep(&self, buffer: Vec<u8>) {
        let mut state = self.lock();
        let kept: usize = state.spare.iter().map(Vec::len).sum();
        if kept + buffer.len() <= SPARE {
            state.spare.push(buffer);
        }
    }
}

/// Bytes of spare buffers that are kept.
const SPARE: usize = 48 << 20;

/// Memory that was promised to a task and is given back when nobody needs it any more.
#[derive(Debug)]
pub(super) struct Held<T, W> {
    reserved: Option<Reserved>,
    home: Arc<Queue<T, W>>,
}

impl<T, W> Held<T, W> {
    pub(super) fn new(reserved: Reserved, home: Arc<Queue<T, W>>) -> Self {
        Self { reserved: Some(reserved), home }
    }
}

impl<T, W> Drop for Held<T, W> {
    fn drop(&mut self) {
        if let Some(reserved) = self.reserved.take() {
            self.home.release(reserved);
        }
    }
}

/// Decoded bytes: the first `length` of a buffer. Whoever drops the last handle gives the buffer back.
#[derive(Debug)]
pub(super) struct Chunk<T, W> {
    buffer: Vec<u8>,
    length: usize,
    held: Arc<Held<T, W>>,
}

impl<T, W> Chunk<T, W> {
    pub(super) fn new(buffer: Vec<u8>, length: usize, held: Arc<Held<T, W>>) -> Self {
        Self { buffer, length, held }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[..self.length]
    }
}

impl<T, W> Drop for Chunk<T, W> {
    fn drop(&mut self) {
        self.held.home.keep(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(next: Option<&Next<&str, &str>>) -> String {
        match next {
            Some(Next::Task(task, ..)) => (*task).into(),
            Some(Next::Write(write)) => format!("write {write}"),
            None => "stop".into(),
        }
    }

    #[test]
    fn writes_come_first_then_packages_in_order() {
        let queue = Queue::new(100);
        queue.push((2, 0), "c", 10);
        queue.push((1, 1), "b", 10);
        queue.push((1, 0), "a", 10);
        queue.push_write("w");
        assert_eq!([0; 4].map(|_| place(queue.next().as_ref())), ["write w", "a", "b", "c"]);
        assert_eq!(queue.most_in_use(), 30);
    }

    #[test]
    fn a_task_waits_for_memory_unless_nothing_else_holds_any() {
        let queue = Arc::new(Queue::<&str, &str>::new(100));
        queue.push((0, 0), "too big alone", 1000);
        queue.push((0, 1), "next", 10);
        let Some(Next::Task("too big alone", _, reserved)) = queue.next() else { panic!() };
        let waiting = queue.clone();
        let thread = std::thread::spawn(move || place(waiting.next().as_ref()));
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(!thread.is_finished());
        drop(Chunk::new(vec![0; 5], 5, Arc::new(Held::new(reserved, queue.clone()))));
        assert_eq!(thread.join().unwrap(), "next");
        assert_eq!(queue.buffer(3).len(), 5); // the buffer came back
    }

    #[test]
    fn stopping_drops_what_waits_without_holding_itself_up() {
        let queue = Arc::new(Queue::<(), Cycle>::new(100));
        queue.push_write(Cycle(Chunk::new(vec![0; 10], 10, Arc::new(Held::new(Reserved(0), queue.clone())))));
        queue.stop();
        assert!(queue.stopped());
        assert_eq!(queue.buffer(0).len(), 10);
    }

    #[test]
    fn the_smallest_spare_buffer_that_is_large_enough_is_taken() {
        let queue = Queue::<(), ()>::new(100);
        for size in [8, 2, 5] {
            queue.keep(vec![1; size]);
        }
        assert_eq!(queue.buffer(3), [1; 5]);
        assert_eq!(queue.buffer(9), [0; 9], "made anew");
        queue.keep(vec![1; SPARE]);
        assert_eq!(queue.lock().spare.len(), 2, "too much to be kept");
    }

    /// A write that holds a chunk of its own queue, as all of them do.
    struct Cycle(#[expect(dead_code, reason = "it is held, and dropped")] Chunk<(), Cycle>);

    #[test]
    fn stopping_wakes_whoever_waits() {
        let queue = Arc::new(Queue::<(), ()>::new(1));
        let waiting = queue.clone();
        let thread = std::thread::spawn(move || waiting.next().is_none());
        queue.stop();
        assert!(thread.join().unwrap() && queue.stopped());
    }
}
