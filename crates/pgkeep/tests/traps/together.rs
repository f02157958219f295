//! The acts that need no server of their own, together, on each way to find changed pages.

use crate::acts::perform;
use crate::scene::Kind;
use crate::{databases, files, kinds, maps, rewrites};

fn all_acts(kind: Kind) {
    let acts = [
        maps::ACT,
        databases::ACT,
        rewrites::ACT,
        rewrites::TABLESPACES,
        rewrites::PERSISTENCE,
        kinds::ACT,
        files::TOUCHED,
        files::ZEROED,
    ];
    perform(kind, |builder| builder, &acts);
}

#[test]
fn all_on_15_by_page_lsn() {
    all_acts(Kind::without_index(15));
}

#[test]
fn all_on_15_by_page_lsn_without_checksums() {
    all_acts(Kind::without_index(15).without_checksums());
}

#[test]
fn all_on_15_by_index() {
    all_acts(Kind::indexed(15));
}

#[test]
fn all_on_18_by_summaries() {
    all_acts(Kind::without_index(18));
}

#[test]
fn all_on_18_by_index() {
    all_acts(Kind::indexed(18).without_checksums());
}

#[test]
fn some_on_17_by_summaries_without_checksums() {
    let acts = [maps::ACT, files::ZEROED];
    perform(Kind::without_index(17).without_checksums(), |builder| builder, &acts);
}

#[test]
fn some_on_14_by_index() {
    let acts = [maps::ACT, rewrites::ACT, databases::ACT];
    perform(Kind::indexed(14).without_checksums(), |builder| builder, &acts);
}

#[test]
fn some_on_16_by_page_lsn_without_checksums() {
    let acts = [maps::ACT, databases::ACT, files::ZEROED];
    perform(Kind::without_index(16).without_checksums(), |builder| builder, &acts);
}
