//! Readies the host's port on the control network: up, with the addresses that every host has.

use std::net::IpAddr;

use rtnetlink::packet_route::address::AddressHeaderFlags;
use xenflow_proto::MacAddr;
use xenflow_proto::control::{HOST_IPV4, HOST_IPV6, guest_ipv4, guest_ipv6};

/// Switches the interface on and gives it its addresses; what is there already stays.
///
/// # Errors
/// What the kernel says.
pub async fn ready(ifindex: u32) -> Result<(), rtnetlink::Error> {
    with_kernel(async |handle| {
        handle.link().set(rtnetlink::LinkUnspec::new_with_index(ifindex).up().build()).execute().await?;
        for (addr, len) in [(IpAddr::from(HOST_IPV6), 64), (IpAddr::from(HOST_IPV4), 16)] {
            let mut request = handle.address().add(ifindex, addr, len).replace();
            // Every host has this address, so its duplicate is no reason to wait or to give it up.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            request.execute().await?;
        }
        Ok(())
    })
    .await
}

/// Tells the kernel the link-layer address of a guest's control addresses, which are made of it.
///
/// # Errors
/// What the kernel says.
pub async fn meet(ifindex: u32, guest: MacAddr) -> Result<(), rtnetlink::Error> {
    with_kernel(async |handle| {
        for addr in [IpAddr::from(guest_ipv6(guest)), IpAddr::from(guest_ipv4(guest))] {
            let request = handle.neighbours().add(ifindex, addr).link_layer_address(&guest.0);
            request.replace().execute().await?;
        }
        Ok(())
    })
    .await
}

async fn with_kernel(
    work: impl AsyncFnOnce(rtnetlink::Handle) -> Result<(), rtnetlink::Error>,
) -> Result<(), rtnetlink::Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| {
        let code = error.raw_os_error().unwrap_or_default();
        let mut message = rtnetlink::packet_core::ErrorMessage::default();
        message.code = std::num::NonZeroI32::new(-code);
        rtnetlink::Error::NetlinkError(message)
    })?;
    let connection = tokio::spawn(connection);
    let done = work(handle).await;
    connection.abort();
    done
}
