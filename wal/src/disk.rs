//! The data directory and its files.
