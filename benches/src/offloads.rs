//! Switching off what lets a network interface carry packets larger than the wire would (ethtool's ioctl).

use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;

use anyhow::{Context, Result, ensure};
use lab::Namespace;

/// Commands of `linux/ethtool.h`: TCP segmentation, generic segmentation, generic receive.
const SWITCHES: [u32; 3] = [0x1f, 0x24, 0x2c];

#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Makes `interface` of `namespace` carry packets one by one.
pub(crate) fn switch_off(namespace: &Namespace, interface: &str) -> Result<()> {
    namespace.enter(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").context("open a socket for ethtool")?;
        for command in SWITCHES {
            let mut value = Value { command, data: 0 };
            // SAFETY: all zeros is a valid value of this plain structure.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            ensure!(interface.len() < request.ifr_name.len(), "{interface} is no interface's name");
            for (into, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
                *into = byte.cast_signed();
            }
            request.ifr_ifru.ifru_data = (&raw mut value).cast();
            // SAFETY: the request and the value it points to outlive the call.
            let failed = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) } != 0;
            ensure!(
                !failed,
                "switch off offload {command:#x} of {interface}: {}",
                std::io::Error::last_os_error()
            );
        }
        Ok(())
    })
}
