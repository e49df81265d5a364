//! Which segments stand under each other's names, as after a directory was put
//! together by hand. The head of each file says where in the log it belongs, so
//! nothing of them is lost.

use std::collections::BTreeMap;

/// Of the files of a log, by the number in the name, and what a whole head says:
/// those that belong elsewhere, and where. Only where all of them can be given
/// their names: not one of two that claim the same place, and none whose place is
/// taken by a file that stays.
#[must_use]
pub fn misnamed(heads: &BTreeMap<u64, Option<u64>>) -> BTreeMap<u64, u64> {
    let mut found: BTreeMap<u64, u64> = heads
        .iter()
        .filter_map(|(name, head)| Some((*name, head.filter(|it| it != name)?)))
        .collect();
    loop {
        let before = found.clone();
        let is_free = |place: &u64| !heads.contains_key(place) || before.contains_key(place);
        let claims = |place: &u64| before.values().filter(|it| *it == place).count();
        found.retain(|_, place| claims(place) == 1 && is_free(place));
        if found.len() == before.len() {
            return found;
        }
    }
}

/// Which two names to exchange next; one of them may be nobody's. What is left
/// then is left in `misnamed`. Interrupted anywhere and begun again from the
/// heads, it comes to the same end.
pub fn next_exchange(misnamed: &mut BTreeMap<u64, u64>) -> Option<(u64, u64)> {
    let (name, segment) = misnamed.pop_first()?;
    // What stood there stands here then.
    if let Some(other) = misnamed.remove(&segment).filter(|other| *other != name) {
        misnamed.insert(name, other);
    }
    Some((name, segment))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn heads(of: &[(u64, Option<u64>)]) -> BTreeMap<u64, Option<u64>> {
        of.iter().copied().collect()
    }

    #[test]
    fn only_what_can_get_its_name_is_told() {
        let check = |files: &[(u64, Option<u64>)], expected: &[(u64, u64)]| {
            assert_eq!(misnamed(&heads(files)), expected.iter().copied().collect());
        };
        check(&[(0, Some(0)), (1, Some(1))], &[]);
        check(&[(0, Some(1)), (1, Some(0)), (2, Some(2))], &[(0, 1), (1, 0)]);
        check(&[(7, Some(2)), (3, Some(3))], &[(7, 2)]);
        // Two copies, a place that is taken, and whoever waits for that one.
        check(&[(7, Some(2)), (8, Some(2))], &[]);
        check(&[(7, Some(2)), (2, Some(2))], &[]);
        check(&[(7, Some(2)), (2, None)], &[]);
        check(&[(7, Some(2)), (2, Some(3)), (3, None)], &[]);
    }

    proptest! {
        /// Whatever the names, each of them alone leads nearer, and all of them lead
        /// to every file's own.
        #[test]
        fn exchanges_give_every_file_its_name(
            names in proptest::sample::subsequence((0..12_u64).collect::<Vec<u64>>(), 0..9)
                .prop_shuffle(),
        ) {
            let mut files: BTreeMap<u64, Option<u64>> =
                names.iter().zip(0..).map(|(name, segment)| (*name, Some(segment))).collect();
            let mut exchanges = 0;
            while let Some((a, b)) = next_exchange(&mut misnamed(&files)) {
                let both = [(a, files.remove(&b)), (b, files.remove(&a))];
                files.extend(both.into_iter().filter_map(|(name, file)| Some((name, file?))));
                exchanges += 1;
                prop_assert!(exchanges <= names.len(), "{names:?}");
            }
            prop_assert!(files.iter().all(|(name, segment)| Some(*name) == *segment), "{files:?}");
            prop_assert_eq!(files.len(), names.len());
        }
    }
}
