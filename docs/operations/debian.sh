#!/bin/sh
# Makes tidemark_VERSION_ARCHITECTURE.deb of a binary that is built: sh docs/operations/debian.sh BINARY DIRECTORY
#
# What it needs: dpkg-deb, objdump, strip, gzip. Manual pages and completions are asked of the binary itself, so it has to be
# one that this machine can run. The package depends on the C and C++ libraries of the machine that built it, or newer ones.
set -eu
binary=$1
into=$2
here=$(cd "$(dirname "$0")" && pwd)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
umask 022

version=$("$binary" --version | cut -d' ' -f2)
architecture=$(dpkg --print-architecture)
libc=$(objdump -T "$binary" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1 | cut -d_ -f2)
libstdcxx=$(dpkg-query -W -f '${Version}' libstdc++6 | sed 's/-.*//')

install -D -m 755 "$binary" "$root/usr/bin/tidemark"
strip "$root/usr/bin/tidemark"
install -D -m 644 "$here/tidemark.service" "$root/usr/lib/systemd/system/tidemark.service"
install -D -m 644 "$here/tidemark.toml" "$root/etc/tidemark/tidemark.toml"
install -D -m 600 "$here/tidemark.env" "$root/etc/tidemark/tidemark.env"
install -d "$root/usr/lib/sysusers.d" "$root/usr/share/man/man1"
echo 'u tidemark - "Tidemark" /var/lib/tidemark' > "$root/usr/lib/sysusers.d/tidemark.conf"
"$binary" man --directory "$root/usr/share/man/man1"
gzip -9n "$root"/usr/share/man/man1/*
completions() {
    install -d "$root/$(dirname "$2")"
    "$binary" completions "$1" > "$root/$2"
}
completions bash usr/share/bash-completion/completions/tidemark
completions zsh usr/share/zsh/vendor-completions/_tidemark
completions fish usr/share/fish/vendor_completions.d/tidemark.fish
doc=$root/usr/share/doc/tidemark
install -D -m 644 "$here/README.md" "$doc/README.md"
install -D -m 644 -t "$doc/examples" "$here/alerts.yml" "$here/prometheus.yml" "$here/grafana.json"
printf 'Tidemark, under the Apache License 2.0.\nOn Debian systems its text is in /usr/share/common-licenses/Apache-2.0.\n' > "$doc/copyright"
printf 'tidemark (%s) unstable; urgency=medium\n\n  * This version.\n\n -- Tidemark <tidemark@localhost>  %s\n' "$version" "$(date -R)" | gzip -9n > "$doc/changelog.gz"

install -d "$root/DEBIAN"
printf '/etc/tidemark/tidemark.toml\n/etc/tidemark/tidemark.env\n' > "$root/DEBIAN/conffiles"
cat > "$root/DEBIAN/control" <<CONTROL
Package: tidemark
Version: $version
Architecture: $architecture
Maintainer: Tidemark <tidemark@localhost>
Section: database
Priority: optional
Installed-Size: $(du -sk --exclude=DEBIAN "$root" | cut -f1)
Depends: libc6 (>= $libc), libgcc-s1, libstdc++6 (>= $libstdcxx), adduser, procps
Suggests: postgresql
Description: exact, live totals of a Postgres table
 Tidemark follows a table's change stream (logical replication), keeps grouped
 sums and counts per time bucket up to date, and answers over HTTP. Every answer
 says up to which position of the log it is true.
CONTROL

# It is not started by itself: nobody has said yet which database and which tables.
cat > "$root/DEBIAN/postinst" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = configure ]; then
    if command -v systemd-sysusers > /dev/null; then
        systemd-sysusers tidemark.conf
    elif ! getent passwd tidemark > /dev/null; then
        adduser --quiet --system --group --home /var/lib/tidemark --no-create-home tidemark
    fi
    # Tokens go here before the service has ever run.
    install -d -o tidemark -g tidemark -m 0700 /var/lib/tidemark
    # Packages before this one had the data right there: it goes on there.
    overrides=/etc/systemd/system/tidemark.service.d
    data=
    if [ -e /var/lib/tidemark/FORMAT ]; then
        data=/var/lib/tidemark
    # And those whose settings did not say where it is, as yours do not if you kept them.
    elif [ -e /var/lib/tidemark/data/FORMAT ] && ! grep -q '^data *=' /etc/tidemark/tidemark.toml; then
        data=/var/lib/tidemark/data
    fi
    if [ -n "$data" ] && [ ! -e $overrides/data.conf ]; then
        install -d $overrides
        printf '[Service]\nEnvironment=TIDEMARK_DATA=%s\n' "$data" > $overrides/data.conf
    fi
    if [ -n "$data" ]; then
        echo "tidemark: say data = \"$data\" in /etc/tidemark/tidemark.toml, for check and drop-slot to find it too"
    fi
    if [ -d /run/systemd/system ]; then
        systemctl daemon-reload
        # A new version goes on where the one before was.
        systemctl try-restart tidemark.service || true
    fi
    if [ -z "${2:-}" ]; then
        echo "tidemark: say what to follow in /etc/tidemark, then: systemctl enable --now tidemark"
    fi
fi
SCRIPT
cat > "$root/DEBIAN/prerm" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = remove ]; then
    if [ -d /run/systemd/system ]; then
        systemctl disable --now tidemark.service || true
    fi
    # The slot has its name from the directory; the last word of the file is the directory's.
    for format in /var/lib/tidemark/data/FORMAT /var/lib/tidemark/FORMAT; do
        [ -e "$format" ] || continue
        slot=tidemark_$(sed 's/.* //' "$format")
        echo "tidemark: Postgres keeps its log for replication slot $slot until somebody drops it:"
        echo "tidemark:   SELECT pg_drop_replication_slot('$slot'); DROP PUBLICATION IF EXISTS $slot;"
    done
fi
SCRIPT
# The data stays, also when purged: it names the slot that is still to be dropped.
cat > "$root/DEBIAN/postrm" <<'SCRIPT'
#!/bin/sh
set -e
if [ "$1" = purge ]; then
    # Ours, and of no use to a package that is installed later.
    rm -f /etc/systemd/system/tidemark.service.d/data.conf
    rmdir --ignore-fail-on-non-empty /etc/systemd/system/tidemark.service.d 2> /dev/null || true
    echo "tidemark: /var/lib/tidemark stays: its data names the replication slot that Postgres may still keep its log for"
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
SCRIPT
chmod 755 "$root/DEBIAN/postinst" "$root/DEBIAN/prerm" "$root/DEBIAN/postrm"

mkdir -p "$into"
dpkg-deb --root-owner-group -Zxz --build "$root" "$into/tidemark_${version}_$architecture.deb"
