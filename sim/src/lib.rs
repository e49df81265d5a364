//! The same shards and log in a simulated world: seeds, faults, oracle
