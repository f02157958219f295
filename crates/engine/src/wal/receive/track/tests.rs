//! Positions and pieces, without a server or a repository.

use super::segment::FAN;
use super::*;
use pg_format::SegmentName;

const MB: u64 = 1 << 20;
const RULES: PieceRules = PieceRules { bytes: MB, interval: Duration::ZERO, at_once: false };

fn size() -> WalSegmentSize {
    WalSegmentSize::new(MB as u32).unwrap()
}

fn name(timeline: u32, segno: u64) -> SegmentName {
    SegmentName::of_lsn(Timeline(timeline), Lsn(segno * MB), size())
}

/// A track that receives segment 3 of timeline 1, for a required repository and one that is not.
fn track() -> (Track, Arc<File>) {
    let track = Track::new(size(), &[true, false], RULES);
    let file = Arc::new(tempfile::tempfile().unwrap());
    track.begin(Timeline(1), Lsn(3 * MB), name(1, 3));
    track.opened(name(1, 3), Lsn(3 * MB), file.clone(), "a".into());
    track.looked(0, name(1, 3), Vec::new());
    track.looked(1, name(1, 3), Vec::new());
    (track, file)
}

fn send(track: &Track, place: usize) -> Vec<Range<u64>> {
    match track.next(place) {
        Next::Piece(piece) => track.sent(place, &piece),
        other => panic!("{other:?}"),
    }
}

#[test]
fn many_small_pieces_become_one() {
    let (track, _file) = track();
    let mut covered = 0;
    for number in 1..=(FAN as u64 * FAN as u64) {
        track.spooled(name(1, 3), number * 100);
        covered += send(&track, 0).len();
        assert_eq!(track.durable_everywhere(), Lsn(3 * MB + number * 100));
    }
    let inner = track.inner();
    let pieces = &inner.segments[0].at[0].pieces;
    assert!(pieces.len() < 3 * FAN, "{} pieces", pieces.len());
    assert_eq!(covered + pieces.len(), FAN * FAN, "each that is gone was told");
    let mut at = 0;
    for (range, _) in pieces {
        assert_eq!(range.start, at);
        at = range.end;
    }
}

#[test]
fn a_segment_goes_when_the_required_repository_has_it() {
    let (track, file) = track();
    track.spooled(name(1, 3), 500);
    assert_eq!(send(&track, 0).len(), 0);
    track.closed(name(1, 3), "b".into(), MB, Closed::Whole);
    assert_eq!(track.spooled_lsn(), Lsn(4 * MB));
    assert_eq!(track.durable_everywhere(), Lsn(3 * MB + 500));
    track.opened(name(1, 4), Lsn(4 * MB), file, "c".into());
    track.spooled(name(1, 4), 700);
    // The next one's tail does not count before the one in front of it is there.
    track.looked(0, name(1, 4), std::iter::once(0..700).collect());
    assert_eq!(track.durable_everywhere(), Lsn(3 * MB + 500));
    track.stored(name(1, 3), &[0]);
    assert_eq!(track.durable_everywhere(), Lsn(4 * MB + 700));
    assert_eq!(track.take_over(), [PathBuf::from("b")]);
    // The other repository lacks it, and does not come further by what follows.
    track.looked(1, name(1, 4), std::iter::once(0..700).collect());
    assert!(track.positions().durable[1].1 < Lsn(4 * MB));
    track.caught_up(1);
    assert_eq!(track.positions().durable[1], (Timeline(1), Lsn(4 * MB + 700)));
    assert!(track.is_drained());
}

#[test]
fn what_a_left_timeline_had_is_never_reported_for_the_next() {
    let (track, file) = track();
    track.spooled(name(1, 3), 5000);
    assert_eq!(send(&track, 0).len(), 0);
    track.begin(Timeline(2), Lsn(3 * MB), name(2, 3));
    assert_eq!(track.durable_everywhere(), Lsn(3 * MB), "the new one begins with the segment");
    assert_eq!(track.next_start(), Some((Timeline(2), Lsn(3 * MB))));
    track.opened(name(2, 3), Lsn(3 * MB), file, "d".into());
    track.spooled(name(2, 3), 100);
    track.looked(0, name(2, 3), std::iter::once(0..100).collect());
    assert_eq!(track.durable_everywhere(), Lsn(3 * MB + 100));
    assert_eq!(track.take_over(), [PathBuf::from("a")], "its tail is in the repository");
}

/// Who sends pieces sleeps until something is new for it: that must not be missed.
#[test]
fn a_change_that_matters_is_told_and_no_other() {
    let (track, _file) = track();
    let mut changed = track.subscribe();
    let mut told = |filled: u64| {
        changed.borrow_and_update();
        track.written(name(1, 3), filled);
        changed.has_changed().unwrap()
    };
    assert!(told(100), "the first bytes");
    assert!(!told(200), "their time runs already");
    assert!(told(MB), "enough to be sent at once");
    let (track, _file) = self::track();
    // The repository has more than was received again so far.
    track.looked(0, name(1, 3), std::iter::once(0..500).collect());
    track.looked(1, name(1, 3), std::iter::once(0..900).collect());
    let mut changed = track.subscribe();
    let mut told = |filled: u64| {
        changed.borrow_and_update();
        track.written(name(1, 3), filled);
        changed.has_changed().unwrap()
    };
    assert!(!told(400));
    assert!(told(600));
    assert!(!told(700));
    track.logged(1, name(1, 3), 900);
    assert!(!told(1000), "it is written to a log");
}

/// What a log has counts as sent; when it fails, what is there is looked at before anything is sent.
#[test]
fn a_log_takes_the_place_of_pieces_until_it_fails() {
    let (track, _file) = track();
    track.written(name(1, 3), 500);
    assert_eq!(track.to_log(0, name(1, 3)), Some(0..500));
    track.logged(0, name(1, 3), 500);
    assert_eq!(track.durable_everywhere(), Lsn(3 * MB + 500));
    track.written(name(1, 3), 800);
    assert!(matches!(track.next(0), Next::Wait(None)), "no piece beside the log");
    assert_eq!(track.to_log(0, name(1, 3)), Some(500..800));
    track.log_failed(0, name(1, 3));
    assert_eq!(track.durable_everywhere(), Lsn(3 * MB), "it is not known what is there");
    assert!(matches!(track.next(0), Next::Look(_)));
    track.looked(0, name(1, 3), std::iter::once(0..200).collect());
    assert!(matches!(track.next(0), Next::Piece(piece) if piece.range == (200..800)));
}
