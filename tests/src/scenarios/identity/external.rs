//! An authority of somebody else, run with OpenSSL alone: a root, one below it that issues and revokes, and whatever
//! that one signs. What it makes is no different from a company's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::site::Site;

const CA: &str = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n";
const DATABASE: &str = "[ca]\ndefault_ca=issuing\n[issuing]\ndatabase=index.txt\ncrlnumber=crlnumber\n\
                        default_md=sha256\ndefault_crl_days=7\ncrl_extensions=list\n\
                        [list]\nauthorityKeyIdentifier=keyid:always\n";

/// See the module.
pub(super) struct External {
    dir: PathBuf,
}

impl External {
    /// Makes root and issuer, and a first list.
    pub(super) fn create(site: &mut Site, dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        let external = Self { dir };
        external.write("ca.ext", CA)?;
        external.write("ca.cnf", DATABASE)?;
        external.write("index.txt", "")?;
        external.write("crlnumber", "01\n")?;
        external.request(site, "root", "Example Root")?;
        external
            .openssl(site, "x509 -req -in root.csr -key root.key -days 30 -extfile ca.ext -out root.pem")?;
        external.request(site, "issuing", "Example Issuing")?;
        external.sign(site, "issuing", "root", "ca.ext")?;
        external.publish(site)?;
        Ok(external)
    }

    /// Issues `NAME.pem`, with the issuer's certificate behind it, and `NAME.key`.
    pub(super) fn issue(&self, site: &mut Site, name: &str, uri: &str, usage: &str) -> Result<()> {
        let extensions = format!(
            "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\nextendedKeyUsage={usage}\nsubjectAltName=URI:{uri}\n"
        );
        self.write("leaf.ext", &extensions)?;
        self.request(site, name, name)?;
        self.sign(site, name, "issuing", "leaf.ext")?;
        let chain = fs::read_to_string(self.at(&format!("{name}.pem")))?
            + &fs::read_to_string(self.at("issuing.pem"))?;
        self.write(&format!("{name}.pem"), &chain)
    }

    /// Revokes what was issued to a name, and publishes that.
    pub(super) fn revoke(&self, site: &mut Site, name: &str) -> Result<()> {
        self.openssl(
            site,
            &format!("ca -config ca.cnf -keyfile issuing.key -cert issuing.pem -revoke {name}.pem"),
        )?;
        self.publish(site)
    }

    /// One of its files.
    pub(super) fn at(&self, file: &str) -> PathBuf {
        self.dir.join(file)
    }

    /// All of them.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    fn publish(&self, site: &mut Site) -> Result<()> {
        self.openssl(
            site,
            "ca -config ca.cnf -keyfile issuing.key -cert issuing.pem -gencrl -out new-crl.pem",
        )?;
        Ok(fs::rename(self.at("new-crl.pem"), self.at("crl.pem"))?)
    }

    fn request(&self, site: &mut Site, name: &str, subject: &str) -> Result<()> {
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
        let mut command = self.command(&format!("req -new {key} -keyout {name}.key -out {name}.csr"));
        site.run(command.arg("-subj").arg(format!("/CN={subject}")))?;
        Ok(())
    }

    fn sign(&self, site: &mut Site, name: &str, by: &str, extensions: &str) -> Result<()> {
        let signer = format!("-CA {by}.pem -CAkey {by}.key -CAcreateserial");
        self.openssl(
            site,
            &format!("x509 -req -in {name}.csr {signer} -days 7 -extfile {extensions} -out {name}.pem"),
        )
    }

    fn openssl(&self, site: &mut Site, args: &str) -> Result<()> {
        site.run(&mut self.command(args))?;
        Ok(())
    }

    fn command(&self, args: &str) -> Command {
        let mut command = Command::new("openssl");
        command.current_dir(&self.dir).args(args.split_whitespace());
        command
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.at(file), text)?)
    }
}
