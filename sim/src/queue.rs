//! What will happen: a heap by time, and by the order in which it was asked for.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

#[derive(Debug)]
struct Due<T> {
    at: (u64, u64),
    what: T,
}

impl<T> PartialEq for Due<T> {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl<T> Eq for Due<T> {}

impl<T> PartialOrd for Due<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Due<T> {
    /// The earliest is the greatest: a heap gives that first.
    fn cmp(&self, other: &Self) -> Ordering {
        other.at.cmp(&self.at)
    }
}

/// A queue of events.
#[derive(Debug)]
pub struct Queue<T> {
    heap: BinaryHeap<Due<T>>,
    asked: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), asked: 0 }
    }
}

impl<T> Queue<T> {
    /// Lets `what` happen at `time`.
    pub fn push(&mut self, time: u64, what: T) {
        self.asked += 1;
        self.heap.push(Due { at: (time, self.asked), what });
    }

    /// When something happens next.
    pub fn next_at(&self) -> Option<u64> {
        self.heap.peek().map(|due| due.at.0)
    }

    /// What happens next.
    pub fn pop(&mut self) -> Option<T> {
        self.heap.pop().map(|due| due.what)
    }

    /// How much waits.
    pub fn len(&self) -> usize {
        self.heap.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_earlier_comes_first_and_at_one_time_what_was_asked_for_first() {
        let mut queue = Queue::default();
        for (time, what) in [(5, 'c'), (3, 'a'), (5, 'd'), (4, 'b')] {
            queue.push(time, what);
        }
        assert_eq!((queue.next_at(), queue.len()), (Some(3), 4));
        assert_eq!(std::iter::from_fn(|| queue.pop()).collect::<String>(), "abcd");
        assert_eq!(queue.next_at(), None);
    }
}
