//! iris-loadgen: an open-loop load generator that verifies every acknowledged message
fn main() {}
