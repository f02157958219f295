//! What happened in a cluster, found in the index of its archived WAL, and the target just before it.
//!
//! No server is asked and no WAL is read whole: the index (docs/format.md section 15) holds transactions with the rows
//! they changed, rows of the catalogs that give names, and marks. [`find`] looks for drops, truncates, large changes and
//! restore points; [`what_is_lost`] says what a target leaves out; [`log`] sums up who wrote how much, and when.
//!
//! - `route`: which WAL is read, and from which backup's names on;
//! - `walk`: the index read in order, transactions put together from their parts, names brought forward;
//! - `names`, `doubt`: which relation a number is, as far as that is certain;
//! - `fold`, `classify`: from what a transaction did to what people call it;
//! - `filter`: what is looked for.

mod activity;
mod classify;
mod damage;
mod doubt;
mod filter;
mod fold;
mod late;
mod loss;
mod names;
mod near;
mod open;
mod route;
mod search;
#[cfg(test)]
mod tests;
mod types;
mod walk;

pub use activity::{ActivityReport, ActivityRequest, Bucket, RelationActivity, TransactionActivity, log};
pub use filter::{Filter, LOAD_SCHEMA, Pattern};
pub use loss::{Loss, LostRelation, OpenState, OpenTransaction, what_is_lost};
pub use near::Instead;
pub use search::{FindReport, FindRequest, LOAD_ROWS_MIN, ROWS_MIN, find};
pub use types::{EventKind, Hit, HitTarget, Object, ObjectKind};
