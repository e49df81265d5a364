//! Bytes and messages: protocol v1 and v2, ids, limits, refusal codes; no state, no I/O
