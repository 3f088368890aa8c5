//! The sockets for asking name servers.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::time::Duration;

use hickory_resolver::net::runtime::{RuntimeProvider, TokioHandle, TokioTime, iocompat::AsyncIoTokioAsStd};
use socket2::SockRef;
use tokio::net::{TcpStream, UdpSocket};

use crate::mark::{bind_udp, tcp_socket};

/// Sockets with a mark, bound to the interface if the name server's address is link-local.
#[derive(Clone)]
pub(super) struct Marked {
    mark: u32,
    zone: Option<String>,
    tasks: TokioHandle,
}

type Connecting<T> = Pin<Box<dyn Send + Future<Output = io::Result<T>>>>;

impl Marked {
    pub fn new(mark: u32, zone: Option<String>) -> Self {
        Self { mark, zone, tasks: TokioHandle::default() }
    }

    fn bind_to_zone(&self, socket: impl AsFd) -> io::Result<()> {
        match &self.zone {
            Some(zone) => SockRef::from(&socket).bind_device(Some(zone.as_bytes())),
            None => Ok(()),
        }
    }

    fn udp(&self, local: SocketAddr) -> io::Result<UdpSocket> {
        let socket = bind_udp(local, self.mark)?;
        self.bind_to_zone(&socket)?;
        Ok(socket)
    }
}

impl RuntimeProvider for Marked {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> TokioHandle {
        self.tasks.clone()
    }

    // The resolver sets the time limit itself, and never asks to bind TCP to a particular address.
    fn connect_tcp(&self, to: SocketAddr, _: Option<SocketAddr>, _: Option<Duration>) -> Connecting<Self::Tcp> {
        let socket = tcp_socket(to, self.mark).and_then(|socket| self.bind_to_zone(&socket).map(|()| socket));
        Box::pin(async move { Ok(AsyncIoTokioAsStd(socket?.connect(to).await?)) })
    }

    fn bind_udp(&self, local: SocketAddr, _: SocketAddr) -> Connecting<UdpSocket> {
        let socket = self.udp(local);
        Box::pin(async move { socket })
    }
}
