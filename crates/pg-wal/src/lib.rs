//! pg-wal
