//! pg-wire
