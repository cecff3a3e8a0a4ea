// Makes the name of the service's own host in the region resolve to 127.0.0.1, as an entry in
// /etc/hosts would. What asks for any other name is answered as ever.

import dns from 'node:dns';

const HOST = `kinesis.${process.env.AWS_DEFAULT_REGION}.amazonaws.com`;
const ADDRESS = '127.0.0.1';

const { lookup } = dns;
dns.lookup = (name, ...rest) => lookup(name === HOST ? ADDRESS : name, ...rest);
