//! Compiles a router's tables and the host's topology into OpenFlow flows; pure.
