//! Streams the kernel's routes and neighbors of a virtual router to its host.
