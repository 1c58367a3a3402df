//! Where a listing goes on, as text: what an answer calls `next` and the request after it `after`. Clients hand it back
//! and look at nothing of it.

use std::net::IpAddr;
use std::str::FromStr;

use xenflow_flow_app::FlowCursor;
use xenflow_flow_app::limit::Prefix;
use xenflow_proto::table::{NeighborKey, RouteKey};

use super::RequestError;

/// Behind a route.
#[must_use]
pub fn route(RouteKey { table, dst, tos, metric }: &RouteKey) -> String {
    format!("{table} {dst} {tos} {metric}")
}

/// Reads [`route`] back.
///
/// # Errors
/// It is none.
pub fn parse_route(text: String) -> Result<RouteKey, RequestError> {
    route_of(&text).ok_or(RequestError::Cursor(text))
}

/// Behind something that has flows.
#[must_use]
pub fn flow(cursor: &FlowCursor) -> String {
    let (kind, after) = match cursor {
        FlowCursor::Route(after) => ("route", after.map(|Prefix { table, dst }| format!("{table} {dst}"))),
        FlowCursor::Local(after) => ("local", after.as_ref().map(route)),
        FlowCursor::Own(after) => ("own", after.map(|addr| addr.to_string())),
        FlowCursor::Neighbor(after) => {
            ("neighbor", after.map(|NeighborKey { ifindex, addr }| format!("{ifindex} {addr}")))
        }
        FlowCursor::Group(after) => ("group", after.map(|id| id.to_string())),
    };
    after.map_or_else(|| kind.to_owned(), |after| format!("{kind} {after}"))
}

/// Reads [`flow`] back.
///
/// # Errors
/// It is none.
pub fn parse_flow(text: String) -> Result<FlowCursor, RequestError> {
    let (kind, after) = match text.split_once(' ') {
        Some((kind, after)) => (kind, Some(after)),
        None => (text.as_str(), None),
    };
    let cursor = match kind {
        "route" => behind(after, prefix_of).map(FlowCursor::Route),
        "local" => behind(after, route_of).map(FlowCursor::Local),
        "own" => behind(after, |text| text.parse::<IpAddr>().ok()).map(FlowCursor::Own),
        "neighbor" => behind(after, neighbor_of).map(FlowCursor::Neighbor),
        "group" => behind(after, |text| text.parse().ok()).map(FlowCursor::Group),
        _ => None,
    };
    cursor.ok_or(RequestError::Cursor(text))
}

/// Nothing is the beginning; what does not parse is none at all.
#[allow(clippy::option_option, reason = "the outer one says whether it parses")]
fn behind<T>(after: Option<&str>, parse: impl Fn(&str) -> Option<T>) -> Option<Option<T>> {
    match after {
        None => Some(None),
        Some(after) => parse(after).map(Some),
    }
}

fn route_of(text: &str) -> Option<RouteKey> {
    let mut parts = text.split(' ');
    let key = RouteKey {
        table: next(&mut parts)?,
        dst: next(&mut parts)?,
        tos: next(&mut parts)?,
        metric: next(&mut parts)?,
    };
    parts.next().is_none().then_some(key)
}

fn prefix_of(text: &str) -> Option<Prefix> {
    let mut parts = text.split(' ');
    let prefix = Prefix { table: next(&mut parts)?, dst: next(&mut parts)? };
    parts.next().is_none().then_some(prefix)
}

fn neighbor_of(text: &str) -> Option<NeighborKey> {
    let mut parts = text.split(' ');
    let key = NeighborKey { ifindex: next(&mut parts)?, addr: next(&mut parts)? };
    parts.next().is_none().then_some(key)
}

fn next<T: FromStr>(parts: &mut std::str::Split<'_, char>) -> Option<T> {
    parts.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let key = RouteKey { table: 255, dst: "2001:db8::/32".parse().unwrap(), tos: 4, metric: u32::MAX };
        assert_eq!(parse_route(route(&key)).unwrap(), key);
        let neighbor = NeighborKey { ifindex: 7, addr: "fe80::1".parse().unwrap() };
        for cursor in [
            FlowCursor::Route(None),
            FlowCursor::Route(Some(Prefix { table: 254, dst: key.dst })),
            FlowCursor::Local(None),
            FlowCursor::Local(Some(key)),
            FlowCursor::Own(None),
            FlowCursor::Own(Some(neighbor.addr)),
            FlowCursor::Neighbor(None),
            FlowCursor::Neighbor(Some(neighbor)),
            FlowCursor::Group(None),
            FlowCursor::Group(Some(65537)),
        ] {
            assert_eq!(parse_flow(flow(&cursor)).unwrap(), cursor);
        }
        for wrong in [
            "",
            "route 254 10.0.0.0/8 0",
            "local 254 10.0.0.0/8 0 20 1",
            "own x",
            "neighbor 1",
            "neighbor x ::",
            "group -1",
        ] {
            assert!(parse_flow(wrong.to_owned()).is_err(), "{wrong}");
        }
    }
}
