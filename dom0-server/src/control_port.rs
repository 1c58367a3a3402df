//! Readies the host's port on the control network: up, with the addresses that every host has.

use std::net::IpAddr;

use rtnetlink::packet_route::address::AddressHeaderFlags;
use xenflow_proto::control::{HOST_IPV4, HOST_IPV6};

/// Switches the interface on and gives it its addresses; what is there already stays.
///
/// # Errors
/// What the kernel says.
pub async fn ready(ifindex: u32) -> Result<(), rtnetlink::Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| {
        let code = error.raw_os_error().unwrap_or_default();
        let mut message = rtnetlink::packet_core::ErrorMessage::default();
        message.code = std::num::NonZeroI32::new(-code);
        rtnetlink::Error::NetlinkError(message)
    })?;
    let connection = tokio::spawn(connection);
    let done = async {
        handle.link().set(rtnetlink::LinkUnspec::new_with_index(ifindex).up().build()).execute().await?;
        for (addr, len) in [(IpAddr::from(HOST_IPV6), 64), (IpAddr::from(HOST_IPV4), 16)] {
            let mut request = handle.address().add(ifindex, addr, len).replace();
            // Every host has this address, so its duplicate is no reason to wait or to give it up.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            request.execute().await?;
        }
        Ok(())
    };
    let done = done.await;
    connection.abort();
    done
}
