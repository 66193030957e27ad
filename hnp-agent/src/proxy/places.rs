//! Places of a worker that are counted: who has one gives it back by ending.

use std::cell::Cell;

/// So many, and no more.
#[derive(Debug)]
pub struct Places {
    taken: Cell<usize>,
    most: usize,
}

/// One of them; dropping it gives it back.
pub struct Place<'p>(&'p Places);

impl Places {
    /// `most` at a time.
    pub fn new(most: usize) -> Self {
        Self { taken: Cell::new(0), most }
    }

    /// One more; `None`: all are taken.
    pub fn take(&self) -> Option<Place<'_>> {
        let taken = self.taken.get();
        (taken < self.most).then(|| {
            self.taken.set(taken + 1);
            Place(self)
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.taken.set(self.0.taken.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_back() {
        let places = Places::new(2);
        let (one, two) = (places.take(), places.take());
        assert!(one.is_some() && two.is_some() && places.take().is_none());
        drop(one);
        assert!(places.take().is_some());
    }
}
