//! Data and load for clusters under test: realistic rows in quantity, and clients whose acknowledged commits are
//! noted outside of the server.

mod fill;
mod ledger;
mod random;
mod verify;

pub use fill::{FillOptions, Filled, fill, fill_with};
pub use ledger::{Entry, Ledger, LoadOptions, RunningLoad};
pub use random::Random;
pub use verify::{Target, Verdict};
