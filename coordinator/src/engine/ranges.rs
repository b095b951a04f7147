//! A set of array elements kept as ranges, so that a million of them cost what one does.

use std::ops::Range;

use rangemap::{RangeMap, RangeSet};

/// Elements of one array.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Elements {
    set: RangeSet<u32>,
    len: u64,
}

impl Elements {
    /// All of `range`.
    #[must_use]
    pub fn of(range: Range<u32>) -> Self {
        let mut elements = Self::default();
        elements.insert(range);
        elements
    }

    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        self.set.contains(&index)
    }

    /// Adds `range` and says how many were new.
    pub fn insert(&mut self, range: Range<u32>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let new = u64::from(range.end - range.start) - self.within(&range);
        self.set.insert(range);
        self.len += new;
        new
    }

    /// Takes `range` out and says how many were in it.
    pub fn remove(&mut self, range: Range<u32>) -> u64 {
        if range.is_empty() {
            return 0;
        }
        let gone = self.within(&range);
        self.set.remove(range);
        self.len -= gone;
        gone
    }

    #[must_use]
    pub fn first(&self) -> Option<u32> {
        self.set.first().map(|range| range.start)
    }

    /// Takes the first one out.
    pub fn pop(&mut self) -> Option<u32> {
        let first = self.first()?;
        self.remove(first..first + 1);
        Some(first)
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        self.set.iter().cloned()
    }

    /// Takes all of `other` out.
    pub fn subtract(&mut self, other: &Self) {
        for range in other.iter() {
            self.remove(range);
        }
    }

    /// Keeps only what `other` has too.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut both = Self::default();
        for range in self.set.intersection(&other.set) {
            both.insert(range);
        }
        both
    }

    fn within(&self, range: &Range<u32>) -> u64 {
        self.set
            .overlapping(range)
            .map(|part| u64::from(part.end.min(range.end) - part.start.max(range.start)))
            .sum()
    }
}

/// The number of the latest attempt of each of some elements, kept as ranges of equal numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts(RangeMap<u32, u32>);

impl Attempts {
    /// Notes that the latest attempt of each element in `range` has this number.
    pub fn insert(&mut self, range: Range<u32>, number: u32) {
        if !range.is_empty() {
            self.0.insert(range, number);
        }
    }

    /// Takes one element out, and says the number of its latest attempt.
    pub fn take(&mut self, index: u32) -> Option<u32> {
        let number = self.0.get(&index).copied()?;
        self.0.remove(index..index + 1);
        Some(number)
    }

    /// Those of `some` that are noted here.
    #[must_use]
    pub fn among(&self, some: &Elements) -> Elements {
        let mut both = Elements::default();
        if self.0.is_empty() {
            return both;
        }
        for range in some.iter() {
            for (noted, _) in self.0.overlapping(&range) {
                both.insert(noted.start.max(range.start)..noted.end.min(range.end));
            }
        }
        both
    }

    /// The ranges with their numbers, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Range<u32>, u32)> + '_ {
        self.0.iter().map(|(range, number)| (range.clone(), *number))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_as_a_set_of_numbers(steps in proptest::collection::vec((any::<bool>(), 0_u32..60, 0_u32..20), 0..60)) {
            let mut elements = Elements::default();
            let mut model = BTreeSet::new();
            for (add, start, length) in steps {
                let range = start..start + length;
                if add {
                    let new = range.clone().filter(|index| model.insert(*index)).count() as u64;
                    prop_assert_eq!(elements.insert(range), new);
                } else {
                    let gone = range.clone().filter(|index| model.remove(index)).count() as u64;
                    prop_assert_eq!(elements.remove(range), gone);
                }
                prop_assert_eq!(elements.len(), model.len() as u64);
            }
            prop_assert_eq!(elements.iter().flatten().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(elements.pop(), model.pop_first());
        }
    }
}
