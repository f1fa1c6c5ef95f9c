package worker

// A form is a URL that a customer may type in. PORT stands for the port of a listener on every address of this machine.
type form struct {
	url string
	// byName: only DNS tells what is wrong with it, so registration takes it.
	byName bool
}

// forbiddenForms lead, by one parser or another, to an address or a port that is not allowed. No request may be made.
func forbiddenForms() []form {
	var forms []form
	for _, url := range []string{
		// Loopback, as it is and as inet_aton would read it: decimal, octal, hexadecimal, short, mixed.
		"http://127.0.0.1:PORT/", "https://127.0.0.1:PORT/", "http://127.0.0.2:PORT/", "http://127.255.255.254:PORT/", "http://127.66.0.1:PORT/",
		"http://2130706433:PORT/", "http://017700000001:PORT/", "http://0x7f000001:PORT/", "http://0X7F000001:PORT/", "http://0x7F.0.0.1:PORT/",
		"http://0177.0.0.1:PORT/", "http://0177.0.0.01:PORT/", "http://0177.0x0.0.1:PORT/", "http://127.1:PORT/", "http://127.0.1:PORT/",
		"http://127.000.000.001:PORT/", "http://00000177.0.0.1:PORT/", "http://0x7f.1:PORT/", "http://0x7f.0x0.0x0.0x1:PORT/", "http://127.0x1:PORT/",
		"http://4294967296127.0.0.1:PORT/", "http://127.0.0.1.:PORT/", "http://127.0.0.1..:PORT/", "http://383.0.0.1:PORT/", "http://6425673729:PORT/",
		"http://0:PORT/", "http://0.0.0.0:PORT/", "http://00.0:PORT/", "http://0x0:PORT/", "http://000:PORT/",
		// IPv6: loopback, unspecified, mapped, compatible, translated, tunnelled, local.
		"http://[::1]:PORT/", "https://[::1]:PORT/", "http://[0:0:0:0:0:0:0:1]:PORT/", "http://[0000::0001]:PORT/", "http://[::]:PORT/", "http://[0::0]:PORT/",
		"http://[::ffff:127.0.0.1]:PORT/", "http://[::ffff:7f00:1]:PORT/", "http://[0:0:0:0:0:ffff:127.0.0.1]:PORT/", "http://[::FFFF:7F00:0001]:PORT/",
		"http://[::ffff:0.0.0.0]:PORT/", "http://[::ffff:10.0.0.1]:PORT/", "http://[::ffff:169.254.169.254]/", "http://[::ffff:0:127.0.0.1]:PORT/",
		"http://[::127.0.0.1]:PORT/", "http://[::7f00:1]:PORT/", "http://[::10.0.0.1]:PORT/", "http://[::169.254.169.254]/",
		"http://[64:ff9b::127.0.0.1]:PORT/", "http://[64:ff9b::7f00:1]:PORT/", "http://[64:ff9b::a9fe:a9fe]/", "http://[64:ff9b::8.8.8.8]/",
		"http://[64:ff9b:1::7f00:1]:PORT/", "http://[64:ff9b:1:ffff::10.0.0.1]:PORT/",
		"http://[2002:7f00:1::1]:PORT/", "http://[2002:a00:1::]/", "http://[2002:a9fe:a9fe::]/", "http://[2002:808:808::1]/",
		"http://[2001::1]:PORT/", "http://[2001:0:7f00:1:0:0:80ff:fffe]:PORT/", "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]/",
		"http://[fe80::1]:PORT/", "http://[fe80::1%25lo]:PORT/", "http://[fe80::a9fe:a9fe%25eth0]/", "http://[::1%25lo]:PORT/", "http://[::1%25]:PORT/", "http://[fe80::1%lo]:PORT/",
		"http://[2606:4700::1%25eth0]/", "http://[fec0::1]:PORT/", "http://[feff::1]/", "http://[fc00::1]:PORT/", "http://[fd12:3456:789a::1]:PORT/",
		"http://[ff02::1]:PORT/", "http://[ff0e::1]/", "http://[100::1]/", "http://[2001:db8::1]/", "http://[3fff::1]/", "http://[5f00::1]/",
		"http://[2001:10::1]/", "http://[2001:20::1]/", "http://[2001:2::1]/", "http://[2620:4f:8000::1]/", "http://[4000::1]/",
		"http://[::1]extra:PORT/", "http://[::1:PORT/", "http://::1:PORT/", "http://[127.0.0.1]:PORT/", "http://[localhost]:PORT/", "http://[]:PORT/",
		// Private, shared, reserved, and the edges of their networks.
		"http://10.0.0.0/", "http://10.255.255.255/", "http://172.16.0.1/", "http://172.31.255.255/", "http://192.168.0.1/", "http://192.168.255.255/",
		"http://100.64.0.0/", "http://100.127.255.255/", "http://169.254.0.0/", "http://169.254.255.255/", "http://0.255.255.255/", "http://192.0.0.1/",
		"http://192.0.2.1/", "http://192.88.99.1/", "http://198.18.0.1/", "http://198.19.255.255/", "http://198.51.100.1/", "http://203.0.113.255/",
		"http://192.31.196.1/", "http://192.52.193.1/", "http://192.175.48.1/", "http://224.0.0.1/", "http://239.255.255.255/", "http://240.0.0.1/", "http://255.255.255.255/",
		"http://167772161/", "http://0xa000001/", "http://012.0.0.1/", "http://10.1/", "http://3232235777/", "http://192.168.257/",
		// Metadata of the clouds: AWS, Google, Azure, Oracle, Alibaba, IBM, Tencent, DigitalOcean, Scaleway, Linode.
		"http://169.254.169.254/latest/meta-data/", "http://169.254.169.254./", "http://2852039166/", "http://0xa9fea9fe/", "http://0251.0376.0251.0376/", "http://0xa9.0xfe.0xa9.0xfe/",
		"http://169.254.43518/", "http://169.16689662/", "http://169.254.170.2/v2/credentials", "http://[fd00:ec2::254]/", "http://[fd00:ec2::23]/", "http://[fd20:ce::254]/",
		"http://metadata.google.internal/computeMetadata/v1/", "http://metadata.google.internal./", "http://metadata/", "http://instance-data/", "http://METADATA.GOOGLE.INTERNAL/",
		"http://168.63.129.16/machine", "http://192.0.0.192/", "http://100.100.100.200/", "http://161.26.0.10/", "http://166.9.0.1/", "http://169.254.0.23/", "http://169.254.42.42/",
		"http://[fd00:42::42]/", "http://[fd00:a9fe:a9fe::1]/",
		// Names of this machine and of private networks.
		"http://localhost:PORT/", "http://LOCALHOST:PORT/", "http://localhost.:PORT/", "http://a.localhost:PORT/", "http://localhost..:PORT/", "http://printer:PORT/",
		"http://printer.local:PORT/", "http://wiki.internal:PORT/", "http://router.home.arpa:PORT/", "http://ip6-localhost:PORT/",
		// Unicode: digits, dots, fullwidth, soft hyphens and joiners, look-alikes.
		"http://①②⑦.⓪.⓪.①:PORT/", "http://１２７.０.０.１:PORT/", "http://127。0。0。1:PORT/", "http://127．0．0．1:PORT/", "http://127｡0｡0｡1:PORT/", "http://𝟏𝟐𝟕.𝟎.𝟎.𝟏:PORT/",
		"http://١٢٧.٠.٠.١:PORT/", "http://lo\u00adcalhost:PORT/", "http://ｌｏｃａｌｈｏｓｔ:PORT/", "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:PORT/", "http://loc\u200dalhost:PORT/", "http://\u202e127.0.0.1:PORT/",
		"http://localhoſt:PORT/", "http://127.0.0.1\ufeff:PORT/", "http://①⑥⑨.②⑤④.①⑥⑨.②⑤④/", "http://bücher.example:PORT/",
		// Who is the host? User info, fragments, backslashes, tabs, line ends, percent signs.
		"http://example.com@127.0.0.1:PORT/", "http://user:pass@127.0.0.1:PORT/", "http://127.0.0.1:PORT@example.com/", "http://example.com#@127.0.0.1:PORT/", "http://127.0.0.1:PORT#@example.com/",
		"http://example.com:443@127.0.0.1:PORT/", "http://example.com\\@127.0.0.1:PORT/", "http://127.0.0.1:PORT\\@example.com/", "http:\\\\127.0.0.1:PORT/", "http:/\\127.0.0.1:PORT/",
		"http:///127.0.0.1:PORT/", "http:127.0.0.1:PORT/", "//127.0.0.1:PORT/", "127.0.0.1:PORT/", "/hook", "", "http://", "http://@127.0.0.1:PORT/", "http://:PORT/",
		"http://127.0.0.1:PORT/\r\nHost: example.com", "http://example.com/\r\nX: y", "http://exa\tmple.com/", "http://127.0.0.1\t:PORT/", "http://127.0.0.1\r\n:PORT/", "http://127.0.0.1\x00.example.com:PORT/",
		" http://127.0.0.1:PORT/", "http://127.0.0.1 :PORT/", "http://127.0.0.1%20:PORT/", "http://%31%32%37.0.0.1:PORT/", "http://127.0.0.1%2f@example.com:PORT/", "http://127%2e0%2e0%2e1:PORT/",
		"http://%6c%6f%63%61%6c%68%6f%73%74:PORT/", "http://localhost%00.example.com:PORT/", "http://%e2%91%a0%e2%91%a1%e2%91%a6.0.0.1:PORT/", "http://{127.0.0.1}:PORT/", "http://127.0.0.1,example.com:PORT/",
		// Ports: odd, and denied ones of a public address.
		"http://8.8.8.8:0/", "http://8.8.8.8:65536/", "http://8.8.8.8:-1/", "http://8.8.8.8:４４３/", "http://8.8.8.8:44a/", "http://8.8.8.8:0x1bb/", "http://8.8.8.8:443:25/",
		"http://8.8.8.8:25/", "http://8.8.8.8:025/", "http://8.8.8.8:465/", "http://8.8.8.8:587/", "http://8.8.8.8:2525/", "http://8.8.8.8:110/", "http://8.8.8.8:143/", "http://8.8.8.8:993/", "http://8.8.8.8:995/",
		"http://8.8.8.8:22/", "http://8.8.8.8:23/", "http://8.8.8.8:135/", "http://8.8.8.8:139/", "http://8.8.8.8:445/", "http://8.8.8.8:2375/", "http://8.8.8.8:2376/", "http://8.8.8.8:2379/", "http://8.8.8.8:2380/",
		"http://8.8.8.8:3389/", "http://8.8.8.8:5900/", "http://8.8.8.8:5985/", "http://8.8.8.8:5986/", "http://8.8.8.8:6443/", "http://8.8.8.8:10250/", "http://[2606:4700::1111]:25/",
		"http://8.8.8.8:1433/", "http://8.8.8.8:1521/", "http://8.8.8.8:3306/", "http://8.8.8.8:5432/", "http://8.8.8.8:6379/", "http://8.8.8.8:9200/", "http://8.8.8.8:9300/", "http://8.8.8.8:11211/", "http://8.8.8.8:27017/",
		"http://public.example:25/", "https://public.example:6379/",
		// Other schemes.
		"ftp://127.0.0.1:PORT/", "file:///etc/passwd", "gopher://127.0.0.1:PORT/_x", "ws://127.0.0.1:PORT/", "wss://127.0.0.1:PORT/", "dict://127.0.0.1:PORT/", "unix:///var/run/docker.sock",
		"ldap://127.0.0.1:PORT/", "javascript:alert(1)", "data:text/plain,x", "http+unix://%2Fvar%2Frun%2Fdocker.sock/", "HTTPX://127.0.0.1:PORT/", "jar:http://127.0.0.1:PORT/!/", "blob:http://127.0.0.1:PORT/",
	} {
		forms = append(forms, form{url: url})
	}
	for _, url := range []string{
		// Names that look like any other. The test's DNS server answers every name with loopback.
		"http://127.0.0.1.nip.example:PORT/", "http://7f000001.rebind.example:PORT/", "https://hook.customer.example:PORT/", "http://xn--lcalhost-54a.example:PORT/", "http://localhost.example.com:PORT/",
		"http://loopback.customer.example.:PORT/", "http://169-254-169-254.example/", "HTTP://Hook.Customer.Example:PORT/", "http://127-0-0-1.example:PORT/", "http://a_b.example:PORT/",
	} {
		forms = append(forms, form{url: url, byName: true})
	}
	return forms
}

// allowedForms are what must pass, each with the address that is connected to: the neighbours of what is forbidden.
func allowedForms() map[string]string {
	return map[string]string{
		"https://8.8.8.8/": "8.8.8.8:443", "http://8.8.8.8/": "8.8.8.8:80", "https://8.8.8.8:8443/a?b=c": "8.8.8.8:8443", "https://8.8.8.8:1/": "8.8.8.8:1", "https://8.8.8.8:65535/": "8.8.8.8:65535",
		"https://8.8.8.8:8080/": "8.8.8.8:8080", "https://8.8.8.8:3000/": "8.8.8.8:3000", "HTTPS://8.8.8.8/": "8.8.8.8:443", "https://8.8.8.8:0443/": "8.8.8.8:443",
		"https://1.0.0.0/": "1.0.0.0:443", "https://9.255.255.255/": "9.255.255.255:443", "https://11.0.0.0/": "11.0.0.0:443", "https://100.63.255.255/": "100.63.255.255:443", "https://100.128.0.0/": "100.128.0.0:443",
		"https://126.255.255.255/": "126.255.255.255:443", "https://128.0.0.0/": "128.0.0.0:443", "https://169.253.255.255/": "169.253.255.255:443", "https://169.255.0.0/": "169.255.0.0:443",
		"https://172.15.255.255/": "172.15.255.255:443", "https://172.32.0.0/": "172.32.0.0:443", "https://191.255.255.255/": "191.255.255.255:443", "https://192.0.1.0/": "192.0.1.0:443", "https://192.0.3.0/": "192.0.3.0:443",
		"https://192.88.98.255/": "192.88.98.255:443", "https://192.88.100.0/": "192.88.100.0:443", "https://192.167.255.255/": "192.167.255.255:443", "https://192.169.0.0/": "192.169.0.0:443",
		"https://198.17.255.255/": "198.17.255.255:443", "https://198.20.0.0/": "198.20.0.0:443", "https://198.51.99.255/": "198.51.99.255:443", "https://198.51.101.0/": "198.51.101.0:443",
		"https://203.0.112.255/": "203.0.112.255:443", "https://203.0.114.0/": "203.0.114.0:443", "https://223.255.255.255/": "223.255.255.255:443",
		"https://168.63.129.15/": "168.63.129.15:443", "https://168.63.129.17/": "168.63.129.17:443", "https://161.25.255.255/": "161.25.255.255:443", "https://161.27.0.0/": "161.27.0.0:443",
		"https://166.7.255.255/": "166.7.255.255:443", "https://166.12.0.0/": "166.12.0.0:443",
		"https://[2000::1]/": "[2000::1]:443", "https://[2001:200::1]/": "[2001:200::1]:443", "https://[2001:db7:ffff::1]/": "[2001:db7:ffff::1]:443", "https://[2001:db9::1]/": "[2001:db9::1]:443",
		"https://[2003::1]/": "[2003::1]:443", "https://[2606:4700::1111]:8443/": "[2606:4700::1111]:8443", "https://[2620:4f:7fff::1]/": "[2620:4f:7fff::1]:443", "https://[3ffe:ffff::1]/": "[3ffe:ffff::1]:443",
		"https://[::ffff:8.8.8.8]/": "8.8.8.8:443", "https://[2606:4700:0:0:0:0:0:1111]/": "[2606:4700::1111]:443",
		"https://public.example/": "8.8.4.4:443", "https://public.example./": "8.8.4.4:443", "https://PUBLIC.example:8443/": "8.8.4.4:8443", "https://xn--bcher-kva.public.example/": "8.8.4.4:443", "http://public.example/": "8.8.4.4:80",
	}
}
