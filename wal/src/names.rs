//! Which segments stand under each other's names, as after a directory was put
//! together by hand. The head of each file says where in the log it belongs, so
//! nothing of them is lost.

use std::collections::BTreeMap;

/// Of the files of a log, by the number in the name, and the segment that each is
/// by its own account: those that belong elsewhere, and where. Left out are those
/// that cannot get there: two that claim one place, and those whose place is taken
/// by a file that stays.
#[must_use]
pub fn misnamed(files: &BTreeMap<u64, Option<u64>>) -> BTreeMap<u64, u64> {
    let mut claimants: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    let mut found = BTreeMap::new();
    let mut staying = Vec::new();
    for (&name, is) in files {
        match *is {
            Some(segment) if segment != name => {
                found.insert(name, segment);
                claimants.entry(segment).or_default().push(name);
            }
            _ => staying.push(name),
        }
    }
    // Whoever stays is in the way of whoever belongs there, who stays then, too.
    staying.extend(claimants.values().filter(|names| names.len() > 1).flatten());
    while let Some(name) = staying.pop() {
        found.remove(&name);
        staying.extend(claimants.remove(&name).into_iter().flatten());
    }
    found
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

    #[test]
    fn only_what_can_get_its_name_is_told() {
        let check = |files: &[(u64, Option<u64>)], expected: &[(u64, u64)]| {
            assert_eq!(
                misnamed(&files.iter().copied().collect()),
                expected.iter().copied().collect()
            );
        };
        check(&[(0, Some(0)), (1, Some(1))], &[]);
        check(&[(0, Some(1)), (1, Some(0)), (2, Some(2))], &[(0, 1), (1, 0)]);
        check(&[(7, Some(2)), (3, Some(3))], &[(7, 2)]);
        // Two copies, a place that is taken, and whoever waits for that one.
        check(&[(7, Some(2)), (8, Some(2))], &[]);
        check(&[(7, Some(2)), (2, Some(2))], &[]);
        check(&[(7, Some(2)), (2, None)], &[]);
        check(&[(7, Some(2)), (2, Some(3)), (3, None)], &[]);
        check(&[(1, Some(7)), (7, Some(2)), (8, Some(2)), (4, Some(5))], &[(4, 5)]);
    }

    /// What stands under two names changes places.
    fn exchange(files: &mut BTreeMap<u64, Option<u64>>, (one, other): (u64, u64)) {
        let both = [(one, files.remove(&other)), (other, files.remove(&one))];
        files.extend(both.into_iter().filter_map(|(name, file)| Some((name, file?))));
    }

    proptest! {
        /// Whatever the names, each exchange alone leads nearer, and all of them lead to
        /// every file's own; and what is left in hand is what the files say.
        #[test]
        fn exchanges_give_every_file_its_name(
            names in proptest::sample::subsequence((0..12_u64).collect::<Vec<u64>>(), 0..9)
                .prop_shuffle(),
        ) {
            let mut files: BTreeMap<u64, Option<u64>> =
                names.iter().zip(0..).map(|(name, segment)| (*name, Some(segment))).collect();
            let mut left = misnamed(&files);
            let mut exchanges = 0;
            while let Some(names) = next_exchange(&mut left) {
                exchange(&mut files, names);
                prop_assert_eq!(&left, &misnamed(&files));
                exchanges += 1;
            }
            prop_assert!(exchanges <= names.len());
            prop_assert!(files.iter().all(|(name, segment)| Some(*name) == *segment), "{files:?}");
            prop_assert_eq!(files.len(), names.len());
        }
    }
}
