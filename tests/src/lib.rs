//! The lab, the end-to-end scenarios and the demo.
