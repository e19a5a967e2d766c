//! The proxy of a company: HTTP `CONNECT` or SOCKS 5, with a password or none, with TLS or none, strict or nosy.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;

/// What the proxy does.
#[derive(Clone, Default)]
pub(crate) struct Rules {
    /// `USER:PASSWORD`.
    pub(crate) password: Option<&'static str>,
    /// Ways to log in that it offers with its 407.
    pub(crate) login: Option<&'static str>,
    /// Answers every `CONNECT` so.
    pub(crate) answer: Option<&'static str>,
    /// SOCKS 5, and not HTTP.
    pub(crate) socks: bool,
    /// Speaks TLS itself.
    pub(crate) sealed: Option<TlsAcceptor>,
    /// Opens the TLS inside.
    pub(crate) opens: Option<TlsAcceptor>,
}

/// Leads to one server, whatever name it is asked for, and remembers that.
pub(crate) struct CorporateProxy {
    pub(crate) address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    task: AbortHandle,
}

impl Drop for CorporateProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

trait Connection: AsyncRead + AsyncWrite + Unpin + Send {}
impl<C: AsyncRead + AsyncWrite + Unpin + Send> Connection for C {}

impl CorporateProxy {
    pub(crate) async fn to(target: SocketAddr, rules: Rules) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let log = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(near, target, rules.clone(), Arc::clone(&log)));
            }
        });
        Self {
            address,
            asked,
            task: task.abort_handle(),
        }
    }

    /// The servers it was asked for.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(near: TcpStream, target: SocketAddr, rules: Rules, log: Arc<Mutex<Vec<String>>>) -> Option<()> {
    let mut near: Box<dyn Connection> = match &rules.sealed {
        Some(acceptor) => Box::new(acceptor.accept(near).await.ok()?),
        None => Box::new(near),
    };
    let asked = if rules.socks {
        socks(&mut near, &rules).await?
    } else {
        connect(&mut near, &rules).await?
    };
    log.lock().unwrap().push(asked);
    if rules.answer.is_some() {
        return None;
    }
    let mut far = TcpStream::connect(target).await.ok()?;
    match &rules.opens {
        Some(acceptor) => copy_bidirectional(&mut acceptor.accept(near).await.ok()?, &mut far).await,
        None => copy_bidirectional(&mut near, &mut far).await,
    }
    .ok()?;
    Some(())
}

async fn connect(near: &mut Box<dyn Connection>, rules: &Rules) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(near.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let asked = head
        .strip_prefix("CONNECT ")
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    let given = head
        .lines()
        .find_map(|line| line.strip_prefix("Proxy-Authorization: Basic "));
    if given != rules.password.map(|password| BASE64.encode(password)).as_deref() {
        let login = rules.login.unwrap_or("Basic realm=\"corp\"");
        let answer = format!("HTTP/1.1 407 Who are you\r\nProxy-Authenticate: {login}\r\nContent-Length: 2\r\n\r\nno");
        near.write_all(answer.as_bytes()).await.ok()?;
        return None;
    }
    // As many proxies answer, in words of another age.
    let answer = rules.answer.unwrap_or("HTTP/1.0 200 Connection established");
    near.write_all(format!("{answer}\r\n\r\n").as_bytes()).await.ok()?;
    Some(asked)
}

/// RFC 1928, RFC 1929.
async fn socks(near: &mut Box<dyn Connection>, rules: &Rules) -> Option<String> {
    assert_eq!(near.read_u8().await.ok()?, 5);
    let mut methods = vec![0; near.read_u8().await.ok()?.into()];
    near.read_exact(&mut methods).await.ok()?;
    let method = if rules.password.is_some() { 2 } else { 0 };
    if !methods.contains(&method) {
        near.write_all(&[5, 0xff]).await.ok()?;
        return None;
    }
    near.write_all(&[5, method]).await.ok()?;
    if let Some(password) = rules.password {
        near.read_u8().await.ok()?;
        let (user, word) = (counted(near).await?, counted(near).await?);
        let fits = format!("{user}:{word}") == password;
        near.write_all(&[1, u8::from(!fits)]).await.ok()?;
        fits.then_some(())?;
    }
    let mut request = [0; 4];
    near.read_exact(&mut request).await.ok()?;
    assert_eq!(request, [5, 1, 0, 3], "it is asked to connect to a name");
    let host = counted(near).await?;
    let port = near.read_u16().await.ok()?;
    // 2: not allowed by its rules.
    let answer = if rules.answer.is_some() { 2 } else { 0 };
    near.write_all(&[5, answer, 0, 1, 0, 0, 0, 0, 0, 0]).await.ok()?;
    Some(format!("{host}:{port}"))
}

async fn counted(near: &mut Box<dyn Connection>) -> Option<String> {
    let mut text = vec![0; near.read_u8().await.ok()?.into()];
    near.read_exact(&mut text).await.ok()?;
    Some(String::from_utf8(text).unwrap())
}
