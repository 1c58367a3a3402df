//! Routes as they are kept: very many say the same of their destinations, so that is kept once.

use std::ops::Deref;
use std::sync::Arc;

use xenflow_proto::table::{Route, RouteKey, RouteKind, RouteTarget};

use super::{Rib, Stamped};

/// What a route says of its destinations.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attributes {
    /// See [`Route::kind`].
    pub kind: RouteKind,
    /// See [`Route::protocol`].
    pub protocol: u8,
    /// See [`Route::scope`].
    pub scope: u8,
    /// See [`Route::target`].
    pub target: RouteTarget,
    /// See [`Route::mtu`].
    pub mtu: Option<u32>,
}

impl Attributes {
    pub(super) fn of(Route { key: _, kind, protocol, scope, target, mtu }: Route) -> Self {
        Self { kind, protocol, scope, target, mtu }
    }
}

/// A route of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteRef<'a> {
    /// What it is found by.
    pub key: RouteKey,
    /// What it says.
    pub attributes: &'a Attributes,
}

impl Deref for RouteRef<'_> {
    type Target = Attributes;

    fn deref(&self) -> &Attributes {
        self.attributes
    }
}

impl RouteRef<'_> {
    /// As the guest said it.
    #[must_use]
    pub fn to_route(self) -> Route {
        let Attributes { kind, protocol, scope, target, mtu } = self.attributes.clone();
        Route { key: self.key, kind, protocol, scope, target, mtu }
    }
}

pub(super) fn read<'a>((key, entry): (&RouteKey, &'a Stamped<Arc<Attributes>>)) -> RouteRef<'a> {
    RouteRef { key: *key, attributes: &entry.value }
}

impl Rib {
    /// The same as others have.
    pub(super) fn intern(&mut self, attributes: Attributes) -> Arc<Attributes> {
        if let Some(known) = self.attributes.get(&attributes) {
            return Arc::clone(known);
        }
        let attributes = Arc::new(attributes);
        self.attributes.insert(Arc::clone(&attributes));
        attributes
    }

    /// A route does not say this any more. If no other does, nobody else has it but the set.
    pub(super) fn forget(&mut self, attributes: Option<Arc<Attributes>>) {
        if let Some(attributes) = attributes
            && Arc::strong_count(&attributes) == 2
        {
            self.attributes.remove(&attributes);
        }
    }
}
