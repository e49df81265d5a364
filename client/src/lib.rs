//! Client library: a sans-io session for protocol v2 and v1, and a blocking driver
