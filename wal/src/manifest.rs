//! What a data directory says about itself.
