//! The append-only log: records, commits, segments, recovery
