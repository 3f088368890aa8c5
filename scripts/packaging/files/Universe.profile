{
  "Name": "amsterdam",
  "LocalPort": 47100,
  "VirtualAddress": "100.64.0.1",
  "PrivateKeyFile": "amsterdam.key",
  "Wan": { "Interface": "eth0", "Mode": "auto" },
  "Lan": { "Interfaces": ["eth1"], "Mode": "auto", "Subnets": ["10.101.0.0/24"] },
  "Peers": [
    {
      "Name": "berlin",
      "PublicKey": "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=",
      "Endpoint": "192.0.2.2:47100",
      "AllowedIPs": ["10.102.0.0/24"],
      "PersistentKeepalive": 25
    }
  ]
}
