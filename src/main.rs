//! The iris-shard binary.

fn main() {}
