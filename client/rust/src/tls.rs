//! How the connection is encrypted.

use std::path::{Path, PathBuf};

use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::builder::ClientBuilder;
use crate::error::{Code, Error};
use crate::target::Target;

/// Where PEM comes from.
enum Pem {
    File(PathBuf),
    Text(Vec<u8>),
}

/// What the options of TLS say.
#[derive(Default)]
pub(crate) struct Tls {
    ca: Option<Pem>,
    certificate: Option<Pem>,
    key: Option<Pem>,
    server_name: Option<String>,
}

/// TLS, of the feature `tls`.
impl ClientBuilder {
    fn with_tls(mut self, change: impl FnOnce(&mut Tls)) -> Self {
        change(self.tls.get_or_insert_default());
        self
    }

    /// Encrypts, and trusts the authorities that the system trusts.
    pub fn tls(self) -> Self {
        self.with_tls(|_| {})
    }

    /// Encrypts, and trusts the authorities in this PEM file instead. Files of TLS
    /// are read once, by [`build`](Self::build).
    pub fn tls_ca(self, file: impl AsRef<Path>) -> Self {
        self.with_tls(|tls| tls.ca = Some(Pem::File(file.as_ref().to_owned())))
    }

    /// As [`tls_ca`](Self::tls_ca), with the PEM itself.
    pub fn tls_ca_pem(self, pem: impl Into<Vec<u8>>) -> Self {
        self.with_tls(|tls| tls.ca = Some(Pem::Text(pem.into())))
    }

    /// The client's own certificate, with its chain, and its key, for a server that
    /// asks for one: PEM files.
    pub fn tls_identity(self, certificate: impl AsRef<Path>, key: impl AsRef<Path>) -> Self {
        self.with_tls(|tls| {
            tls.certificate = Some(Pem::File(certificate.as_ref().to_owned()));
            tls.key = Some(Pem::File(key.as_ref().to_owned()));
        })
    }

    /// As [`tls_identity`](Self::tls_identity), with the PEM itself.
    pub fn tls_identity_pem(
        self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.with_tls(|tls| {
            tls.certificate = Some(Pem::Text(certificate.into()));
            tls.key = Some(Pem::Text(key.into()));
        })
    }

    /// Encrypts, and wants a certificate for this name in place of the target's.
    pub fn tls_server_name(self, name: impl Into<String>) -> Self {
        self.with_tls(|tls| tls.server_name = Some(name.into()))
    }
}

impl Tls {
    pub(crate) fn config(self, target: &Target) -> Result<ClientTlsConfig, Error> {
        let mut config = ClientTlsConfig::new();
        config = match self.ca {
            Some(ca) => config.ca_certificate(Certificate::from_pem(ca.read("tls_ca")?)),
            None => config.with_native_roots(),
        };
        if let (Some(certificate), Some(key)) = (self.certificate, self.key) {
            let certificate = certificate.read("tls_identity")?;
            config = config.identity(Identity::from_pem(certificate, key.read("tls_identity")?));
        }
        let name = match (self.server_name, target) {
            (Some(name), _) => name,
            (None, Target::Tcp { host, .. }) => host.clone(),
            (None, Target::Unix(_)) => "localhost".to_owned(),
        };
        Ok(config.domain_name(name))
    }
}

impl Pem {
    fn read(self, option: &str) -> Result<Vec<u8>, Error> {
        let (path, text) = match self {
            Self::Text(text) => (None, text),
            Self::File(path) => {
                let text = std::fs::read(&path).map_err(|e| {
                    let text = format!("{option}: {}: {e}", path.display());
                    Error::local(Code::InvalidArgument, text).with_source(e)
                })?;
                (Some(path), text)
            }
        };
        if !text.windows(11).any(|window| window == b"-----BEGIN ") {
            let name = path.map_or_else(String::new, |path| format!("{}: ", path.display()));
            return Err(Error::local(
                Code::InvalidArgument,
                format!("{option}: {name}is no PEM"),
            ));
        }
        Ok(text)
    }
}
