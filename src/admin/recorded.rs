//! What a histogram holds, without the room for what it does not hold.
//!
//! A histogram from 1 µs to 60 s has some 18,000 places, of which a run fills
//! a few hundred. The admin thread keeps several ages of each one, so it keeps
//! only what is filled, and spreads it out again when somebody asks.

use hdrhistogram::Histogram;

/// The filled places of a histogram, by rising value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Recorded {
    /// Highest value of the place, and how many values it holds.
    places: Vec<(u64, u64)>,
}

impl Recorded {
    /// Takes over what a histogram holds.
    pub(super) fn copy(&mut self, histogram: &Histogram<u64>) {
        self.places.clear();
        self.places.extend(
            histogram
                .iter_recorded()
                .map(|place| (place.value_iterated_to(), place.count_at_value())),
        );
    }

    /// What this one, which is the later, holds and `earlier` did not.
    pub(super) fn since(&self, earlier: &Recorded) -> Recorded {
        let mut before = earlier.places.iter().peekable();
        let mut places = Vec::new();
        for &(value, count) in &self.places {
            while before.next_if(|(other, _)| *other < value).is_some() {}
            let had = before.next_if(|(other, _)| *other == value).map_or(0, |(_, had)| *had);
            if count > had {
                places.push((value, count - had));
            }
        }
        Recorded { places }
    }

    /// Adds everything to a histogram of the same bounds.
    pub(super) fn add_to(&self, histogram: &mut Histogram<u64>) {
        for &(value, count) in &self.places {
            histogram.saturating_record_n(value, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::published::histogram;
    use super::*;

    fn recorded(values: &[u64]) -> Recorded {
        let mut all = histogram();
        values.iter().for_each(|value| all.record(*value).unwrap());
        let mut recorded = Recorded::default();
        recorded.copy(&all);
        recorded
    }

    #[test]
    fn there_and_back_changes_nothing() {
        let values = [0, 1, 1_000, 1_500, 1_500, 77_777, 1_234_567, 59_999_999_999];
        let mut direct = histogram();
        values.iter().for_each(|value| direct.record(*value).unwrap());
        let mut back = histogram();
        recorded(&values).add_to(&mut back);
        assert_eq!(back, direct);
        assert_eq!((back.min(), back.max()), (direct.min(), direct.max()));
        assert_eq!(back.mean(), direct.mean());
    }

    #[test]
    fn since_is_what_came_later() {
        let check = |earlier: &[u64], later: &[u64], expect: &[u64]| {
            assert_eq!(recorded(later).since(&recorded(earlier)), recorded(expect));
        };
        check(&[], &[], &[]);
        check(&[], &[5_000], &[5_000]);
        check(&[5_000], &[5_000], &[]);
        check(&[5_000, 9_000], &[1_000, 5_000, 5_000, 9_000, 99_000], &[1_000, 5_000, 99_000]);
    }
}
