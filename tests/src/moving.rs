//! What the lab has for guests that move: a virtual machine around a guest's namespace ([`vm`]), the toolstack that moves
//! it ([`mover`], the program `lab mover`), a site of three nodes on a learning bridge ([`site`]) whose table is watched
//! ([`fdb`]), the packets that are counted meanwhile ([`measure`]), and neighbors that ask for the router ([`asked`]).

pub mod asked;
pub mod fdb;
mod links;
pub mod measure;
pub mod mover;
pub mod site;
mod switch;
pub mod vm;
