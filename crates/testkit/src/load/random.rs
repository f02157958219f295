//! Repeatable random values: the same seed gives the same data.

use std::fmt::Write as _;

/// A small generator (splitmix64). Good enough for test data, not for secrets.
#[derive(Debug, Clone)]
pub struct Random(u64);

/// Words with a spread of lengths, so that text compresses about as prose does.
const WORDS: [&str; 96] = [
    "order",
    "delivered",
    "late",
    "customer",
    "asked",
    "for",
    "a",
    "refund",
    "the",
    "parcel",
    "was",
    "damaged",
    "invoice",
    "sent",
    "by",
    "mail",
    "on",
    "monday",
    "and",
    "paid",
    "within",
    "thirty",
    "days",
    "price",
    "agreed",
    "with",
    "sales",
    "manager",
    "in",
    "northern",
    "region",
    "stock",
    "is",
    "low",
    "please",
    "reorder",
    "before",
    "quarter",
    "ends",
    "shipment",
    "held",
    "at",
    "customs",
    "documents",
    "missing",
    "contact",
    "carrier",
    "tomorrow",
    "morning",
    "discount",
    "applied",
    "twice",
    "correct",
    "this",
    "returned",
    "item",
    "inspected",
    "accepted",
    "warehouse",
    "seven",
    "second",
    "floor",
    "shelf",
    "fragile",
    "handle",
    "care",
    "signature",
    "required",
    "not",
    "home",
    "left",
    "neighbour",
    "replacement",
    "colour",
    "blue",
    "green",
    "size",
    "medium",
    "large",
    "subscription",
    "renewed",
    "cancelled",
    "trial",
    "expired",
    "account",
    "merged",
    "duplicate",
    "address",
    "changed",
    "verified",
    "phone",
    "number",
    "unknown",
    "see",
    "attached",
    "note",
];

impl Random {
    /// A generator that begins at `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number from 0 up to, and without, `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        // The bias of the remainder does not matter for test data.
        self.next_u64() % limit.max(1)
    }

    /// One of the given values.
    pub fn pick<'a>(&mut self, values: &[&'a str]) -> &'a str {
        values[self.below(values.len() as u64) as usize]
    }

    /// Appends `count` words with spaces between them.
    pub fn words(&mut self, count: u64, out: &mut String) {
        for position in 0..count {
            if position > 0 {
                out.push(' ');
            }
            out.push_str(self.pick(&WORDS));
            if self.below(24) == 0 {
                // Numbers and codes between the words, as people write them.
                write!(out, " {:x}", self.next_u64() >> 32).expect("writing to a String cannot fail");
            }
        }
    }

    /// Appends a random UUID (version 4).
    pub fn uuid(&mut self, out: &mut String) {
        let (high, low) = (self.next_u64(), self.next_u64());
        write!(
            out,
            "{:08x}-{:04x}-4{:03x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xfff,
            0x8000 | ((low >> 48) & 0x3fff),
            low & 0xffff_ffff_ffff
        )
        .expect("writing to a String cannot fail");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_data() {
        let text = |seed| {
            let mut out = String::new();
            let mut random = Random::new(seed);
            random.words(20, &mut out);
            random.uuid(&mut out);
            out
        };
        assert_eq!(text(1), text(1));
        assert_ne!(text(1), text(2));
    }

    #[test]
    fn uuids_are_well_formed() {
        let mut out = String::new();
        Random::new(7).uuid(&mut out);
        assert_eq!(out.len(), 36);
        assert_eq!(out.as_bytes()[14], b'4');
        assert!(matches!(out.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
    }
}
