//! One core's brain: users, inboxes, sessions; takes inputs, gives back effects, does no I/O
