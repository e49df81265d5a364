//! The queue of low priority: cleaning, snapshots, the census.
//!
//! No message waits for these, and all of them can take as long as they like, so
//! they come behind everything else in a turn, and a turn is never longer by more
//! than one portion of one of them: what a read for the cleaner has brought, a
//! slice of a snapshot, some places of a census. They take turns, so that none of
//! them keeps another one from getting on, and each turn does one, so that a core
//! that never rests gives back its space all the same.

use std::collections::VecDeque;

use super::Core;

/// What the next portion is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// The read with this tag has brought a stretch of a segment that is being
    /// cleaned: what is to survive of it is copied.
    Survey(usize),
    Snapshot,
    Census,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Background {
    waiting: VecDeque<Task>,
}

impl Background {
    /// Once it is in the queue, it stays where it is.
    pub(super) fn add(&mut self, task: Task) {
        if !self.waiting.contains(&task) {
            self.waiting.push_back(task);
        }
    }

    /// Whether the next turn has something to do for it.
    pub(super) fn is_hungry(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl Core {
    /// One portion of the task whose turn it is.
    pub(super) fn background(&mut self) {
        if self.snapshots.is_idle_until_told() {
            // No portion, only a look whether the disk or the log is done.
            self.snapshot();
        } else if self.snapshots.is_awaited() || self.shard.wants_snapshot() {
            self.background.add(Task::Snapshot);
        }
        if self.census.is_hungry() {
            self.background.add(Task::Census);
        }
        match self.background.waiting.pop_front() {
            Some(Task::Survey(tag)) => self.serve_reader(tag),
            Some(Task::Snapshot) => self.snapshot(),
            Some(Task::Census) => self.census(),
            None if self.out.list.is_empty() => return,
            None => {}
        }
        self.hand_out();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A survey that comes back at once keeps neither of the others waiting.
    #[test]
    fn tasks_take_turns() {
        let mut background = Background::default();
        let mut served = Vec::new();
        for _ in 0..7 {
            background.add(Task::Snapshot);
            background.add(Task::Survey(3));
            background.add(Task::Census);
            served.extend(background.waiting.pop_front());
        }
        use Task::{Census, Snapshot, Survey};
        assert_eq!(served, [Snapshot, Survey(3), Census, Snapshot, Survey(3), Census, Snapshot]);
        assert!(background.is_hungry());
    }
}
