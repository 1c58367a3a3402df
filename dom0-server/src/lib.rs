//! The host daemon xenflow-dom0 and the operator's command xenflow.
