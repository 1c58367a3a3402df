//! OpenFlow 1.5 with the Open vSwitch extensions: a codec and a sans-I/O session.
