//! What this machine is, what to choose for it, and how to apply it
