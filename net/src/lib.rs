//! The hands: io_uring, sockets, buffers, the mesh between cores, the clock
