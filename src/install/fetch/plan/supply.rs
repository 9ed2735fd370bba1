//! Items whose files need not be fetched: somebody else has them, or is fetching them.

use std::fs::File;
use std::sync::Arc;

use super::super::item::{Origin, Place};
use super::Plan;
use crate::error::Error;

impl Plan {
    /// Lets every item wait until it has been said where its bytes come from.
    pub(in super::super) fn wait_for_supply(&mut self) {
        self.items.iter_mut().for_each(|item| item.origin = Origin::Unsaid);
    }

    /// Items that wait for that.
    pub(in super::super) fn waiting(&self) -> Vec<usize> {
        let waits = |i: &usize| self.items[*i].origin == Origin::Unsaid && self.items[*i].end.is_none();
        (0..self.items.len()).filter(waits).collect()
    }

    /// The item's bytes come from its address.
    pub(in super::super) fn fetch_item(&mut self, index: usize) {
        self.items[index].origin = Origin::Address;
        self.effects.work = true;
    }

    /// The item's file is there, with the right size: it only has to be verified.
    pub(in super::super) fn given(&mut self, index: usize, file: File) {
        let item = &mut self.items[index];
        (item.origin, item.was_created) = (Origin::Given, true);
        (item.place, item.next) = (Place::Open(Arc::new(file)), item.size);
        self.effects.hash = true;
    }

    /// A file that was given is not the right one: the item waits for another.
    pub(super) fn refuse(&mut self, index: usize, why: &str) {
        let item = &mut self.items[index];
        tracing::warn!(path = %item.path.display(), why, "a cached file cannot be used; it is had anew");
        item.restart();
        item.origin = Origin::Unsaid;
    }

    /// The item's file cannot be read back.
    pub(in super::super) fn unreadable(&mut self, index: usize, e: std::io::Error) {
        if self.items[index].origin == Origin::Given {
            self.refuse(index, &e.to_string());
        } else {
            let path = self.items[index].path.clone();
            self.fail(index, Error::io("read the download", path, e));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulation::Simulation;
    use crate::install::fetch::Event;

    #[test]
    fn what_waits_is_neither_fetched_nor_hashed_and_what_is_given_only_hashed() {
        let mut s = Simulation::new(&[5, 5], 2);
        s.plan.wait_for_supply();
        assert_eq!(s.plan.waiting(), [0, 1]);
        assert!(s.take(0).is_none() && s.plan.next_hash().is_none());
        s.plan.given(0, tempfile::tempfile().unwrap());
        assert!(s.take(0).is_none());
        let work = s.plan.next_hash().unwrap();
        assert_eq!((work.item, work.range.clone(), s.plan.bytes()), (0, 0..5, 5));
        // No five bytes have that sum.
        s.plan.hashed(work);
        assert_eq!((s.plan.waiting(), s.plan.bytes()), (vec![0, 1], 0));
        s.plan.fetch_item(0);
        assert_eq!(s.take(0).map(|order| order.item), Some(0));
        assert!(s.plan.creation(0).replaces, "what was given lies in the way");
        let events = s.plan.effects().events;
        assert!(events.is_empty(), "{events:?}");
    }

    #[test]
    fn a_given_file_that_cannot_be_read_is_no_failure() {
        let mut s = Simulation::new(&[5, 5], 1);
        s.plan.wait_for_supply();
        s.plan.given(0, tempfile::tempfile().unwrap());
        s.plan.unreadable(0, std::io::ErrorKind::UnexpectedEof.into());
        assert_eq!(s.plan.waiting(), [0, 1]);
        s.plan.fetch_item(1);
        s.plan.unreadable(1, std::io::ErrorKind::UnexpectedEof.into());
        assert!(matches!(s.plan.effects().events[..], [Event::Failed { item: 1, .. }]));
    }
}
