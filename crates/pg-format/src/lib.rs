//! pg-format
