//! Full-page images by minute: who asks what wrote all the WAL wants to see when checkpoints had it grow.

use crate::types::TimestampTz;

const MICROSECONDS_A_MINUTE: i64 = 60_000_000;

/// How many full-page images.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageCount {
    /// How many.
    pub images: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl ImageCount {
    /// Adds more.
    pub fn add(&mut self, more: Self) {
        self.images = self.images.saturating_add(more.images);
        self.bytes = self.bytes.saturating_add(more.bytes);
    }
}

/// Full-page images of a stretch of WAL by minute. A record has no time; images count for the next end of a transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Images {
    /// The minute, since 2000, of the first end of a transaction.
    pub first: Option<i64>,
    /// By minute, ascending; minutes without images are left out.
    pub minutes: Vec<(i64, ImageCount)>,
    /// After the last end.
    pub rest: ImageCount,
}

impl Images {
    /// An image.
    #[inline]
    pub(crate) fn image(&mut self, bytes: u64) {
        self.rest.add(ImageCount { images: 1, bytes });
    }

    /// A transaction ended.
    #[inline]
    pub(crate) fn end(&mut self, time: TimestampTz) {
        if self.first.is_some() && self.rest.images == 0 {
            return;
        }
        let minute = time.0.div_euclid(MICROSECONDS_A_MINUTE);
        self.first.get_or_insert(minute);
        let rest = std::mem::take(&mut self.rest);
        self.put(minute, rest);
    }

    fn put(&mut self, minute: i64, count: ImageCount) {
        if count == ImageCount::default() {
            return;
        }
        match self.minutes.binary_search_by_key(&minute, |(minute, _)| *minute) {
            Ok(at) => self.minutes[at].1.add(count),
            Err(at) => self.minutes.insert(at, (minute, count)),
        }
    }

    /// Adds those of the WAL that follows.
    pub fn append(&mut self, later: &Self) {
        if let Some(first) = later.first {
            let rest = std::mem::replace(&mut self.rest, later.rest);
            self.put(first, rest);
            self.first.get_or_insert(first);
            later.minutes.iter().for_each(|(minute, count)| self.put(*minute, *count));
        } else {
            self.rest.add(later.rest);
        }
    }

    /// All of them.
    pub fn total(&self) -> ImageCount {
        let mut total = self.rest;
        self.minutes.iter().for_each(|(_, count)| total.add(*count));
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minute(minute: i64) -> TimestampTz {
        TimestampTz(minute * MICROSECONDS_A_MINUTE + 7)
    }

    #[test]
    fn images_count_for_the_next_end() {
        let steps: [&[Option<i64>]; 3] =
            [&[None, None, Some(5)], &[None], &[None, Some(5), Some(4), None, Some(7), None]];
        let put = |images: &mut Images, step: &Option<i64>| match step {
            None => images.image(10),
            Some(at) => images.end(minute(*at)),
        };
        let mut whole = Images::default();
        steps.iter().copied().flatten().for_each(|step| put(&mut whole, step));
        let mut joined = Images::default();
        for part in steps {
            let mut images = Images::default();
            part.iter().for_each(|step| put(&mut images, step));
            joined.append(&images);
        }
        assert_eq!(joined, whole);
        let counts: Vec<(i64, u64)> = whole.minutes.iter().map(|(minute, count)| (*minute, count.images)).collect();
        assert_eq!((counts, whole.rest.images, whole.total().bytes), (vec![(5, 4), (7, 1)], 1, 60));
        assert_eq!(whole.first, Some(5));
    }
}
